"""Penalties on the Jacobian, the one-step gradient and the correction: training that gives an equilibrium."""

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from maps import Affine, weights
from maps import Contraction as Tanh
from test_implicit_gradient import CountedProduct
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifr.contraction import PENALISED, Contraction, JacobianNorm, Penalty
from ifr.equilibrium import fixed_point
from ifr.mask_head import MaskHead
from ifr.refine import Implicit, RefinementBlock, set_phase
from ifr.solvers import GMRES, Anderson, Picard

PENALTIES: list[Penalty] = [JacobianNorm(0.5), Contraction(0.5, limit=0.1)]

each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)


def refinement(**options: object) -> Implicit:
    return Implicit(Anderson(30, 1e-12), GMRES(30, 1e-12), **options)  # type: ignore[arg-type]


def block_and_features(regions: int = 9) -> tuple[RefinementBlock, Tensor]:
    return RefinementBlock(8).double(), torch.randn(regions, 8, 5, 4, dtype=torch.float64, requires_grad=True)


def test_the_jacobian_norm_of_an_affine_map_is_its_frobenius_norm() -> None:
    """Over 4000 draws, the mean of an estimate whose relative spread is below 0.5 is right within 4 %."""
    one = Affine([0.9])
    f = Affine([0.9] * 4000)
    f.weight, f.x = one.weight.expand(4000, -1, -1), one.x.expand(4000, -1)
    expected = one.weight.square().sum() / one.weight.shape[1]
    torch.testing.assert_close(JacobianNorm(3.0)(f, f.x).mean() / 3, expected, rtol=0.04, atol=0)


def test_the_contraction_factor_of_a_symmetric_map_is_its_largest_singular_value() -> None:
    f = Affine([0.3, 0.6, 0.9])
    f.weight = f.weight + f.weight.mT
    factor = torch.linalg.matrix_norm(f.weight, 2)
    found = Contraction(2.0, limit=0.5, iterations=300)(f, f.solution())
    torch.testing.assert_close(found, 2 * torch.relu(factor - 0.5).square(), rtol=1e-6, atol=1e-9)
    assert (found > 0).tolist() == (factor > 0.5).tolist()


def test_a_map_that_contracts_has_no_contraction_penalty() -> None:
    f = Tanh([0.2, 0.45])
    assert torch.equal(Contraction(1.0)(f, f.x), torch.zeros(2, dtype=torch.float64))


@each_penalty
def test_gradcheck_of_the_penalties(penalty: Penalty) -> None:
    """The direction is that of the largest singular value, where the factor is stationary in it."""
    if isinstance(penalty, Contraction):
        penalty = Contraction(penalty.weight, penalty.limit, iterations=400)
    half = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    z = torch.ones(3, 6, dtype=torch.float64)
    x = z - 0.3 * z @ (half + half.mT).detach()

    def loss(half: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return penalty(lambda z: 0.3 * z @ (half + half.mT) + x, z).sum()

    assert torch.autograd.gradcheck(loss, half)


@each_penalty
def test_a_bad_region_leaves_the_penalty_of_the_others_alone(penalty: Penalty) -> None:
    f = Tanh([0.9, 0.8, 0.7])
    torch.manual_seed(0)
    clean = penalty(f, f.x)
    f.x[1] = torch.nan
    torch.manual_seed(0)
    found = penalty(f, f.x)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_the_contraction_penalty_of_a_region_does_not_depend_on_its_batch() -> None:
    f = Tanh([0.9, 0.8, 0.7])
    together = Contraction(1.0, limit=0.1)(f, f.x)
    for sample in range(3):
        alone = Contraction(1.0, limit=0.1)(f.only(sample), f.x[sample : sample + 1])
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=1e-12, atol=0)


@each_penalty
def test_an_equilibrium_at_zero_has_a_finite_penalty(penalty: Penalty) -> None:
    z = torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(penalty(lambda z: 0 * z, z), torch.zeros(2, dtype=torch.float64))


@each_penalty
def test_the_block_gets_a_penalty_in_the_implicit_phase_of_training(penalty: Penalty) -> None:
    block, x = block_and_features()
    refine = refinement(penalty=penalty)
    refine.eval()(block, x)
    assert refine.take_penalty() is None
    refine.train()
    set_phase(refine, "explicit")
    refine(block, x)
    assert refine.take_penalty() is None
    set_phase(refine, "implicit")
    z = refine(block, x)
    assert torch.equal(z, refinement().train()(block, x))
    found = refine.take_penalty()
    assert found is not None
    assert found.shape == (-(-len(x) // PENALISED),)
    assert (found > 0).all()
    assert refine.take_penalty() is None
    refine(block, x)
    set_phase(refine, "explicit")
    refine(block, x)
    assert refine.take_penalty() is None
    gradient, *of_weights = torch.autograd.grad(found.sum(), [x, *block.parameters()], allow_unused=True)
    assert gradient is None
    assert all(part is not None and part.abs().max() > 0 for part in of_weights[:4])


@each_penalty
@pytest.mark.parametrize("correction", [0, 3])
def test_the_penalty_is_that_of_every_fourth_region_at_its_equilibrium(penalty: Penalty, correction: int) -> None:
    block, x = block_and_features(12)
    refine = refinement(penalty=penalty, correction=correction).train()
    z = refine(block, x)
    some = slice(len(x) // 3 if correction else 0, None, PENALISED)
    torch.manual_seed(0)
    found = refine.take_penalty()
    torch.manual_seed(0)
    assert found is not None
    assert torch.equal(found, penalty(block.at(x[some]), z[some]))
    assert float((block.at(x)(z) - z)[some].detach().abs().max()) < 1e-3


@each_penalty
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_gradients_has_no_penalty(
    penalty: Penalty, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    """Such as the losses of an evaluation, which are computed in training mode."""
    block, x = block_and_features()
    refine = refinement(penalty=penalty).train()
    with mode():
        refine(block, x.detach())
        assert refine.take_penalty() is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_head_keeps_the_penalty(reentrant: bool) -> None:
    """A re-entrant checkpoint runs the forward pass without gradients."""
    block, x = block_and_features()
    refine = refinement(penalty=Contraction(0.5, limit=0.1)).train()
    refine(block, x)
    expected = refine.take_penalty()
    checkpoint(refine, block, x, use_reentrant=reentrant)
    found = refine.take_penalty()
    assert found is not None
    assert found.requires_grad
    torch.testing.assert_close(found, expected)


def test_evaluation_drops_the_penalty_of_training() -> None:
    block, x = block_and_features()
    refine = refinement(penalty=Contraction(0.5, limit=0.1)).train()
    refine(block, x)
    refine.eval()(block, x)
    assert refine.take_penalty() is None


@each_penalty
def test_copies_drop_the_penalty_of_the_latest_step(penalty: Penalty) -> None:
    block, x = block_and_features()
    refine = refinement(penalty=penalty).train()
    refine(block, x)
    for other in (copy.deepcopy(refine), pickle.loads(pickle.dumps(refine))):
        assert other.take_penalty() is None
        assert other.penalty == penalty
    assert refine.take_penalty() is not None


@each_penalty
@pytest.mark.parametrize("correction", [0, 3])
@pytest.mark.parametrize("regions", [0, 1, 2])
def test_few_regions_train(penalty: Penalty, correction: int, regions: int) -> None:
    block, x = block_and_features(regions)
    refine = refinement(penalty=penalty, correction=correction).train()
    (refine(block, x).sum() + refine.take_penalty().sum()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())


def test_training_with_a_penalty_makes_a_block_contract() -> None:
    block = RefinementBlock(8)
    x = torch.randn(16, 8, 5, 4)
    refine = Implicit(Anderson(15, 1e-6), GMRES(15, 1e-6), penalty=Contraction(1.0, limit=0.3)).train()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    found = []
    for _ in range(40):
        refine(block, x)
        penalty = refine.take_penalty().mean()  # type: ignore[union-attr]
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        found.append(float(penalty.detach()))
    assert found[-1] < 0.2 * found[0]


def test_the_one_step_gradient_takes_one_product_and_is_that_of_f() -> None:
    weight, x = weights()

    def f(z: Tensor) -> Tensor:
        return CountedProduct.apply(torch.tanh(z @ weight + x))  # type: ignore[no-any-return]

    z = fixed_point(f, torch.zeros_like(x), solver=Anderson(60, 1e-12), adjoint=None)
    cotangent = torch.randn_like(z)
    CountedProduct.count = 0
    found = torch.autograd.grad((z * cotangent).sum(), (weight, x))
    assert CountedProduct.count == 1
    expected = torch.autograd.grad((f(z.detach()) * cotangent).sum(), (weight, x))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_damped_picard_adjoint_is_the_phantom_gradient() -> None:
    """u after k steps is damping * sum of (damping J^T + (1 - damping))^i g over i < k."""
    weight, x = weights()
    damping, terms = 0.5, 4
    z = fixed_point(
        lambda z: torch.tanh(z @ weight + x),
        torch.zeros_like(x),
        solver=Anderson(60, 1e-12),
        adjoint=Picard(terms, 0.0, damping),
    )
    cotangent = torch.randn_like(z)
    (found,) = torch.autograd.grad((z * cotangent).sum(), x)
    slope = 1 - z.detach().square()
    power, u = cotangent.clone(), torch.zeros_like(z)
    for _ in range(terms):
        u += damping * power
        power = damping * (power * slope) @ weight.detach().mT + (1 - damping) * power
    torch.testing.assert_close(found, u * slope, rtol=1e-9, atol=0)


def test_a_correction_trains_a_third_of_the_regions_on_an_early_iterate() -> None:
    block, x = block_and_features(7)
    z = refinement(correction=3).train()(block, x)
    early = torch.zeros_like(x)
    for _ in range(3):
        early = block(early, x)
    torch.testing.assert_close(z[:2], early[:2])
    torch.testing.assert_close(z[2:], refinement().train()(block, x[2:]))
    assert (z[2:] - early[2:]).abs().max() > 1e-4
    assert torch.autograd.grad(z[0].sum(), x)[0][0].abs().max() > 0
    torch.testing.assert_close(refinement(correction=3).eval()(block, x), refinement().eval()(block, x))


def test_the_gain_scales_the_equilibrium_and_keeps_the_names_and_logits() -> None:
    heads = []
    for gain in (1.0, 0.5):
        torch.manual_seed(0)
        heads.append(MaskHead(8, 2, refinement(), gain=gain).double())
    default, smaller = (head.state_dict() for head in heads)
    torch.manual_seed(0)
    assert all(
        torch.equal(value, default[key].float()) for key, value in MaskHead(8, 2, refinement()).state_dict().items()
    )
    assert default.keys() == smaller.keys()
    assert torch.equal(smaller["repeat_block.gn3.weight"], torch.full((8,), 0.5, dtype=torch.float64))
    x, zero = torch.randn(2, 2, 8, 4, 4, dtype=torch.float64)
    images = [head.repeat_block(0 * zero, x) for head in heads]
    torch.testing.assert_close(images[1], images[0] / 2)
    torch.testing.assert_close(*(head.deconv(image) for head, image in zip(heads, images, strict=True)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JacobianNorm(0.0), "weight must be positive; got 0.0"),
        (lambda: Contraction(-1.0), "weight must be positive; got -1.0"),
        (lambda: Contraction(1.0, limit=0.0), "limit must be positive; got 0.0"),
        (lambda: Contraction(1.0, iterations=-1), "iterations must be at least 0; got -1"),
        (lambda: refinement(correction=-1), "correction must be at least 0; got -1"),
        (lambda: MaskHead(8, 2, refinement(), gain=0.0), "gain must be positive; got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(make: type[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
