"""Frozen batch normalisation: torchvision's values, in the dtype of its input."""

import copy
import io

import pytest
import torch
from test_variants import R50, build
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ifr.hosts.standalone.detector.layers import FrozenBatchNorm


def random_norms(channels: int = 5) -> tuple[FrozenBatchNorm, FrozenBatchNorm2d]:
    own, wanted = FrozenBatchNorm(channels, eps=1e-3), FrozenBatchNorm2d(channels, eps=1e-3)
    wanted.load_state_dict({name: torch.rand(channels) + 0.1 for name in wanted.state_dict()})
    own.load_state_dict(wanted.state_dict())
    return own, wanted


def test_values_gradients_and_keys_are_those_of_torchvision() -> None:
    own, wanted = random_norms()
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    cotangent = torch.randn(2, 5, 6, 7)
    assert list(own.state_dict()) == list(wanted.state_dict())
    for _ in range(2):
        assert torch.equal(own(x), wanted(x))
        assert torch.equal(
            torch.autograd.grad(own(x), x, cotangent)[0], torch.autograd.grad(wanted(x), x, cotangent)[0]
        )
    assert torch.equal(own.double()(x.double()), wanted.double()(x.double()))


def test_a_state_of_batch_normalisation_loads() -> None:
    trained = nn.BatchNorm2d(5)
    trained(torch.randn(8, 5, 3, 3))
    own = FrozenBatchNorm(5)
    own.load_state_dict(trained.state_dict())  # has num_batches_tracked
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(own(x), trained.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype: torch.dtype) -> None:
    own, wanted = random_norms()
    x = torch.randn(2, 5, 6, 7).to(dtype)
    found = own(x)
    assert found.dtype == dtype
    # scale, shift, product and sum are each rounded once
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.float(), wanted(x.float()), rtol=2 * eps, atol=2 * eps * 4)
    half = copy.deepcopy(own).to(dtype)
    torch.testing.assert_close(half(x).float(), wanted(x.float()), rtol=4 * eps, atol=4 * eps * 4)


def test_a_change_of_the_statistics_shows_at_the_next_call() -> None:
    own, wanted = random_norms()
    x = torch.randn(2, 5, 3, 3)
    own(x)
    other = {name: torch.rand(5) + 0.1 for name in wanted.state_dict()}
    for assign in (False, True):
        for norm in (own, wanted):
            norm.load_state_dict({name: value + assign for name, value in other.items()}, assign=assign)
        assert torch.equal(own(x), wanted(x))
    for norm in (own, wanted):
        norm.running_var.mul_(2)
    assert torch.equal(own(x), wanted(x))
    assert torch.equal(own.double()(x.double()), wanted.double()(x.double()))
    assert torch.equal(own.float()(x), wanted.float()(x))
    replaced = {"bias": torch.rand(5)}
    found, expected = (torch.func.functional_call(norm, replaced, (x,)) for norm in (own, wanted))
    assert torch.equal(found, expected)
    assert torch.equal(own(x), wanted(x))


def test_training_after_inference_and_copies() -> None:
    """Tensors made in inference mode cannot be saved for a backward pass."""
    own, wanted = random_norms()
    x = torch.randn(2, 5, 3, 3, requires_grad=True)
    with torch.inference_mode():
        own(x)
        built = FrozenBatchNorm(5)
        built(x)
        built.running_mean.add_(1)
        torch.testing.assert_close(built(x), x - 1, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(own(x).sum(), x)
    assert torch.equal(gradient, torch.autograd.grad(wanted(x).sum(), x)[0])
    file = io.BytesIO()
    torch.save(own, file)
    file.seek(0)
    for twin in (copy.deepcopy(own), torch.load(file, weights_only=False)):
        twin.bias.add_(1)
        assert not torch.equal(twin(x), own(x))
    assert torch.equal(own(x), wanted(x))


def saved_bytes(backbone: nn.Module, images: Tensor) -> int:
    """Return the bytes of the activations that a forward pass saves for the backward pass."""
    weights = {parameter.shape for parameter in backbone.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if saved.shape not in weights:  # also not their bfloat16 copies, which do not grow with the image
            sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(saved)  # so that no address is used twice
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        backbone(images)
    return sum(sizes.values())


def test_mixed_precision_saves_memory() -> None:
    """All activations after a norm are bfloat16, and half of float32's bytes are saved for backward.

    With torchvision's norms, which return float32, bfloat16 saved more bytes than float32.
    """
    backbone = build({**R50, "MODEL.BACKBONE.FREEZE_AT": 0}).backbone.train()
    images = torch.randn(1, 3, 128, 160)
    dtypes = set()
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    full = saved_bytes(backbone, images)
    assert (len(norms), dtypes) == (53, {torch.float32})
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        levels = backbone(images)
        low = saved_bytes(backbone, images)
    assert dtypes == {torch.bfloat16}
    assert {level.dtype for level in levels.values()} == {torch.bfloat16}
    assert low < 0.55 * full, (low, full)
