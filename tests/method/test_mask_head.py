"""The mask head as a module: phases, loading, initialisation, zero regions, distributed training."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from measure import LiveBytes
from torch import Tensor, nn

from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker, joined
from ifr.refine import Explicit, Implicit, RefinementBlock, set_phase
from ifr.solvers import GMRES, Broyden


def implicit() -> Implicit:
    return Implicit(Broyden(10), GMRES(10))


@pytest.mark.parametrize("refinement", [Explicit(), implicit()], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("classes", "deconv_channels"), [(1, None), (7, 12)])
def test_shapes(refinement: Explicit | Implicit, classes: int, deconv_channels: int | None) -> None:
    head = MaskHead(8, classes, refinement, deconv_channels)
    assert head(torch.randn(3, 8, 14, 14)).shape == (3, classes, 28, 28)
    assert head.deconv.out_channels == (deconv_channels or 8)


def test_keys_match_the_published_code() -> None:
    shared = {f"repeat_block.gn{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    shared |= {f"{layer}.{name}" for layer in ("deconv", "predictor") for name in ("weight", "bias")}
    assert set(MaskHead(8, 3, Explicit()).state_dict()) == shared | {f"repeat_block.conv{i}.weight" for i in (1, 2)}
    assert set(MaskHead(8, 3, implicit()).state_dict()) == shared | {
        f"repeat_block.conv{i}.weight_{part}" for i in (1, 2) for part in "gv"
    }


def test_the_phase_affects_training_only() -> None:
    head, x = MaskHead(8, 3, implicit()), torch.randn(2, 8, 6, 6)
    block = head.repeat_block.at(x)
    warm = block(block(block(block(torch.zeros_like(x)))))
    results = {}
    for phase in ("explicit", "implicit"):
        set_phase(head, phase)
        for training in (True, False):
            results[phase, training] = head.train(training).refinement(head.repeat_block, x)
    torch.testing.assert_close(results["explicit", True], warm, rtol=0, atol=0)
    torch.testing.assert_close(results["explicit", False], results["implicit", False], rtol=0, atol=0)
    torch.testing.assert_close(results["implicit", True], results["implicit", False], rtol=0, atol=0)
    assert not torch.allclose(results["explicit", True], results["implicit", True])


def test_weight_norm_keeps_the_initial_weight_and_ignores_the_length_of_v() -> None:
    block = RefinementBlock(8)
    torch.testing.assert_close(block.conv1.weight, block.conv1.weight_v)
    with torch.no_grad():
        block.conv1.weight_v *= 7
    torch.testing.assert_close(block.conv1.weight.flatten(1).norm(dim=1), block.conv1.weight_g.flatten())


def test_initialisation() -> None:
    """The deconvolution uses Caffe2's MSRAFill, variance 2 / fan_out; the predictor has standard deviation 0.001."""
    head = MaskHead(128, 400, implicit())
    # The relative error of a standard deviation of n samples is 1 / sqrt(2 n): below 0.5 % for 50,000 weights.
    # Like the published code, torch takes the fan-out of an (in, out, 2, 2) weight along its first dimension.
    assert float(head.deconv.weight.detach().std()) == pytest.approx((2 / (128 * 4)) ** 0.5, rel=0.02)
    assert float(head.predictor.weight.detach().std()) == pytest.approx(0.001, rel=0.02)
    assert not head.deconv.bias.any()
    assert not head.predictor.bias.any()


def test_loading_ignores_only_the_published_duplicates(ifr_head: dict[str, Tensor]) -> None:
    state = {key[3:]: value for key, value in ifr_head.items() if key.startswith("sd.")}
    assert any(key.startswith("deq.func_copy.") for key in state)
    before = set(state)
    MaskHead(16, 5, implicit()).load_state_dict(state)
    assert set(state) == before
    nn.ModuleDict({"mask_head": MaskHead(16, 5, implicit())}).load_state_dict(
        {f"mask_head.{key}": value for key, value in state.items()}
    )
    for foreign in ("deq.func.conv9.weight", "repeat_block_copy.extra", "deq.weight", "mask_fcn1.weight"):
        with pytest.raises(RuntimeError, match=f'Unexpected key.*"{foreign}"'):
            MaskHead(16, 5, implicit()).load_state_dict({**state, foreign: torch.zeros(1)})


def test_loading_a_mismatched_state_dict_names_its_keys(weight_sharing_head: dict[str, Tensor]) -> None:
    state = {key[3:]: value for key, value in weight_sharing_head.items() if key.startswith("sd.")}
    MaskHead(16, 5, Explicit()).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'(?s)"repeat_block\.conv1\.weight_g".*"repeat_block\.conv1\.weight"'):
        MaskHead(16, 5, implicit()).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"size mismatch for predictor\.weight.*\[5, 16, 1, 1\]"):
        MaskHead(16, 6, Explicit()).load_state_dict(state)


@pytest.mark.parametrize("classes", [1, 5])
def test_predicting_a_few_regions_at_a_time_changes_nothing(classes: int) -> None:
    head, z = MaskHead(8, classes, Explicit()).double(), torch.randn(37, 8, 5, 5, dtype=torch.float64)
    layers = nn.Sequential(copy.deepcopy(head.deconv), nn.ReLU(), copy.deepcopy(head.predictor))
    region, chosen = torch.arange(37), torch.randint(classes, (37,))
    got, wanted = (x.requires_grad_() for x in (z.clone(), z.clone()))
    all_logits, logits, expected = head.predict(got), head.predict(got, chosen), layers(wanted)
    torch.testing.assert_close(all_logits, expected)
    torch.testing.assert_close(logits, expected[region, chosen])
    logits.sin().sum().backward()
    expected[region, chosen].sin().sum().backward()
    torch.testing.assert_close(got.grad, wanted.grad)
    torch.testing.assert_close(head.deconv.weight.grad, layers[0].weight.grad)
    torch.testing.assert_close(head.predictor.weight.grad, layers[2].weight.grad)
    with torch.no_grad():
        for last in (z, z.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(head.predict(last, chosen), expected[region, chosen])
            assert head.predict(last).is_contiguous()
            torch.testing.assert_close(head.predict(last), layers(z))


def test_predicting_many_regions_takes_little_memory_besides_their_features() -> None:
    head, z = MaskHead(8, 5, Explicit()), torch.randn(128, 8, 14, 14, requires_grad=True)
    classes = torch.randint(5, (128,))
    size = 4 * z.numel()
    with LiveBytes() as live:
        head.predict(z, classes).sum().backward()
    assert 4 * size > live.peak > size  # of the upsampled features alone, 4 sizes at once and 12 with the gradients


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_zero_regions_keep_every_parameter_in_the_graph(phase: str) -> None:
    head, x = MaskHead(8, 3, implicit()), torch.zeros(0, 8, 14, 14, requires_grad=True)
    set_phase(head, phase)
    logits = head(x)
    assert logits.shape == (0, 3, 28, 28)
    logits.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters())
    with torch.no_grad():
        assert head.eval()(x).shape == (0, 3, 28, 28)


def test_a_region_does_not_depend_on_the_others() -> None:
    head, x = MaskHead(8, 3, implicit()).double().eval(), torch.randn(5, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        together = head(x)
        for region in range(5):
            torch.testing.assert_close(head(x[region : region + 1])[0], together[region], rtol=0, atol=1e-10)


@pytest.mark.parametrize("refinement", [implicit(), Implicit.published(10)], ids=["default", "published"])
def test_evaluation_does_not_depend_on_whether_gradients_are_enabled(refinement: Implicit) -> None:
    """Features are channels last, like all without gradients on a CPU; other formats round in another way."""
    head, x = MaskHead(8, 3, refinement).eval(), torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = head(x)
    assert torch.equal(head(x).detach(), expected)
    head.train()
    with torch.no_grad():
        expected = head(x)
    assert torch.equal(head(x).detach(), expected)


def test_shapes_are_inferred_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert MaskHead(8, 3, Explicit())(torch.empty(2, 8, 6, 6)).shape == (2, 3, 12, 12)


def test_copies_drop_the_observer() -> None:
    head = MaskHead(8, 3, Implicit(Broyden(), GMRES(), observe=lambda name, solution: None))
    assert pickle.loads(pickle.dumps(head)).refinement.observe is None
    assert copy.deepcopy(head).refinement.observe is None
    assert head.refinement.observe is not None


def test_deepcopy_has_its_own_parameters() -> None:
    head, x = MaskHead(8, 3, implicit()).eval(), torch.randn(1, 8, 6, 6)
    other = copy.deepcopy(head)
    expected = head(x)
    with torch.no_grad():
        head.repeat_block.conv1.weight_g.zero_()
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("regions", [3, 40])
def test_classes_of_other_regions_are_refused(regions: int) -> None:
    head, x = MaskHead(8, 3, Explicit()), torch.randn(regions, 8, 4, 4)
    with pytest.raises(ValueError, match=rf"classes must be \({regions},\), one of each region; got \(2,\)"):
        head(x, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_classes_that_are_no_indices_are_refused(dtype: torch.dtype) -> None:
    """torch takes the first two for a mask."""
    with pytest.raises(TypeError, match=f"classes must be int64 or int32; got {dtype}"):
        MaskHead(8, 8, Explicit())(torch.randn(8, 8, 4, 4), torch.ones(8, dtype=dtype))


def test_many_regions_get_the_gradient_of_the_masks_that_a_random_predictor_gave() -> None:
    """Logits are linear in the weights, so that these times the gradient of the sum of squares are twice that sum."""
    head = MaskHead(8, 3, Explicit(1))
    weight = head.predictor.weight
    head.predictor = nn.Sequential(nn.Dropout(0.5), head.predictor)  # type: ignore[assignment]
    loss = head(torch.randn(20, 8, 4, 4)).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close((weight * gradient).sum(), 2 * loss)


def test_misuse_names_the_value() -> None:
    with pytest.raises(ValueError, match=r"x must be \(N, 8, H, W\); got \(2, 9, 6, 6\)"):
        MaskHead(8, 3, implicit())(torch.zeros(2, 9, 6, 6))
    with pytest.raises(TypeError, match=r"solver must be a solver.*; got 'broyden'"):
        Implicit("broyden", GMRES())
    with pytest.raises(TypeError, match=r"refinement must be an Explicit or an Implicit; got Broyden"):
        MaskHead(8, 3, Broyden())
    with pytest.raises(ValueError, match=r"phase must be one of .*; got 'explict'"):
        implicit().phase = "explict"
    with pytest.raises(ValueError, match="groups must be at least 1; got 0"):
        RefinementBlock(8, groups=0)
    with pytest.raises(ValueError, match="multiple of groups = 4; got 10"):
        RefinementBlock(10)
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        MaskHead(8, 0, implicit())
    with pytest.raises(ValueError, match="deconv_channels must be at least 1; got 0"):
        MaskHead(8, 3, implicit(), 0)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        Explicit(0)
    with pytest.raises(ValueError, match="warmup_steps must be at least 1; got 0"):
        Implicit(Broyden(), GMRES(), warmup_steps=0)
    with pytest.raises(ValueError, match=r"phase must be one of .*; got 'warm'"):
        set_phase(MaskHead(8, 3, implicit()), "warm")


def regions_of(rank: int) -> Tensor:
    """Return three regions for rank 0 and none for rank 1."""
    return torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(5))[: 3 * (1 - rank)]


def distributed_step(rank: int, folder: str, phase: str) -> None:
    """Run one backward pass and write this rank's gradients to the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with joined(Worker(rank, 2, rank), f"file://{folder}/rendezvous", "cpu"):
        head = MaskHead(8, 3, implicit())
        set_phase(head, phase)
        parallel = nn.parallel.DistributedDataParallel(head)
        parallel(regions_of(rank)).sum().backward()
        torch.save([parameter.grad for parameter in head.parameters()], Path(folder) / f"{phase}{rank}.pt")
        del parallel  # otherwise it keeps the process group's threads alive


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_ranks_agree_when_one_has_no_regions(tmp_path: Path, phase: str) -> None:
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path), phase), nprocs=2)
    found = [torch.load(tmp_path / f"{phase}{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.manual_seed(0)
    head = MaskHead(8, 3, implicit())
    set_phase(head, phase)
    head(regions_of(0)).sum().backward()
    for first, second, parameter in zip(*found, head.parameters(), strict=True):
        assert torch.equal(first, second)
        # Half: DDP averages over the two ranks. Rounding differs with the number of threads.
        torch.testing.assert_close(first, parameter.grad / 2, rtol=1e-3, atol=1e-5)
