"""The learned start and solver: f decides the equilibrium, whatever the networks predict."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ifr.mask_head import MaskHead
from ifr.refine import Implicit, RefinementBlock, set_phase
from ifr.solvers import GMRES, Accelerator, Anderson, Broyden, Learned, Solution, Status
from ifr.solvers.fit import fit_accelerator
from ifr.solvers.learned import SMALL, small_width
from ifr.solvers.solution import Map

CHANNELS = 8


def random_accelerator(scale: float, dtype: torch.dtype = torch.float64) -> Accelerator:
    """Return an accelerator whose corrections are arbitrary, not fitted."""
    accelerator = Accelerator(CHANNELS, 4).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in accelerator.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += (scale * noise).to(dtype)
    return accelerator


@pytest.fixture
def block() -> RefinementBlock:
    torch.manual_seed(0)
    return RefinementBlock(CHANNELS).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def solve(block: RefinementBlock, x: Tensor, steps: int = 6, scale: float = 0.05) -> Solution:
    solver = Learned(random_accelerator(scale), steps, 0.0)
    with torch.no_grad():
        return solver.solve(block.at(x), torch.zeros_like(x))


@pytest.mark.parametrize("scale", [0.0, 0.05, 0.1])
def test_the_equilibrium_is_that_of_f(block: RefinementBlock, x: Tensor, scale: float) -> None:
    with torch.no_grad():
        plain = Anderson(300, 1e-11).solve(block.at(x), torch.zeros_like(x))
        found = Learned(random_accelerator(scale), 300, 1e-11).solve(block.at(x), torch.zeros_like(x))
    assert found.status.tolist() == [Status.CONVERGED] * len(x)
    torch.testing.assert_close(found.z, plain.z, rtol=0, atol=1e-8)


def test_corrections_of_zero_leave_anderson_without_its_first_difference(block: RefinementBlock, x: Tensor) -> None:
    """New networks predict zero; the start is then f(0), from which Anderson begins."""
    f = block.at(x)
    with torch.no_grad():
        found = Learned(Accelerator(CHANNELS).double(), 5, 0.0).solve(f, torch.zeros_like(x))
        plain = Anderson(4, 0.0).solve(f, f(torch.zeros_like(x)))
    assert torch.equal(found.z, plain.z)


def test_a_residual_of_zero_is_corrected_by_zero(x: Tensor) -> None:
    step = random_accelerator(1.0).step
    assert not step(x, torch.zeros_like(x)).any()
    torch.testing.assert_close(step(x, 3 * x), 3 * step(x, x))


def test_alone_as_in_a_batch(block: RefinementBlock, x: Tensor) -> None:
    batch = solve(block, x)
    for sample in range(len(x)):
        alone = solve(block, x[sample : sample + 1])
        torch.testing.assert_close(alone.z[0], batch.z[sample], rtol=0, atol=1e-10)
        assert alone.steps[0] == batch.steps[sample]


def test_samples_that_leave_the_batch_change_nothing(block: RefinementBlock, x: Tensor) -> None:
    """Three of five regions converge at once and leave."""
    x[:3] *= 1e-30
    solver = Learned(random_accelerator(0.05), 8, 1e-3)
    with torch.no_grad():
        f = block.at(x)
        leaving, staying = (solver.solve(g, torch.zeros_like(x)) for g in (f, lambda z: f(z)))
    torch.testing.assert_close(leaving.z, staying.z, rtol=0, atol=1e-10)
    assert torch.equal(leaving.steps, staying.steps)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_region_leaves_the_others_bit_equal(block: RefinementBlock, x: Tensor, poison: float) -> None:
    healthy = solve(block, x)
    x[2, 0, 1, 1] = poison
    found = solve(block, x)
    others = torch.tensor([0, 1, 3, 4])
    assert found.status[2] == Status.NONFINITE
    for name in ("z", "residual", "steps", "status"):
        assert torch.equal(getattr(found, name)[others], getattr(healthy, name)[others])


def test_a_network_that_predicts_nan_keeps_the_best_iterate(block: RefinementBlock, x: Tensor) -> None:
    accelerator = random_accelerator(0.05)
    nn.init.constant_(accelerator.step.direct.weight, torch.nan)
    with torch.no_grad():
        found = Learned(accelerator, 6, 0.0).solve(block.at(x), torch.zeros_like(x))
    assert found.z.isfinite().all()
    assert found.residual.isfinite().all()
    assert found.status.tolist() == [Status.NONFINITE] * len(x)


def test_zero_regions(block: RefinementBlock, x: Tensor) -> None:
    solution = solve(block, x[:0])
    assert solution.z.shape == (0, CHANNELS, 6, 6)
    assert len(solution.residual) == len(solution.steps) == len(solution.status) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_and_format_of_the_start(dtype: torch.dtype) -> None:
    z0 = torch.zeros(3, CHANNELS, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(CHANNELS, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    solutions = [
        Learned(random_accelerator(0.05, dtype), 6, 0.0).solve(lambda z: torch.tanh(z / 2 + bias), start)
        for start in (z0, z0.contiguous())
    ]
    assert solutions[0].z.dtype == dtype
    assert solutions[0].z.is_contiguous(memory_format=torch.channels_last)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5  # the convolutions of the formats round differently
    torch.testing.assert_close(solutions[0].z, solutions[1].z, rtol=0, atol=tolerance)


def accelerated(**settings: object) -> Implicit:
    refinement = Implicit(Broyden(6, 0.0), GMRES(200, 1e-12), **settings)  # type: ignore[arg-type]
    refinement.accelerator = random_accelerator(0.05)
    return refinement


def test_only_evaluation_is_accelerated(block: RefinementBlock, x: Tensor) -> None:
    plain = Implicit(Broyden(6, 0.0), GMRES(200, 1e-12))
    refinement = accelerated()
    with torch.no_grad():
        assert torch.equal(refinement.train()(block, x), plain.train()(block, x))
        set_phase(refinement, "explicit")
        assert not torch.equal(refinement.eval()(block, x), plain.eval()(block, x))
        off = accelerated(accelerate=False).eval()
        assert torch.equal(off(block, x), plain(block, x))


def test_the_correction_of_the_first_step_is_for_a_start_at_zero(block: RefinementBlock, x: Tensor) -> None:
    """From elsewhere, the first step is corrected as the others are."""
    refinement = accelerated(budget=2).eval()
    accelerator = refinement.accelerator
    assert accelerator is not None
    start = torch.randn_like(x)
    with torch.no_grad():
        refinement(block, x, start)
        accelerator.start.apply(lambda part: [parameter.fill_(float("nan")) for parameter in part.parameters()])
        image = block.at(x)(start)
        wanted = block.at(x)(image + accelerator.step(image, image - start))
        torch.testing.assert_close(refinement(block, x, start), wanted, rtol=0, atol=1e-10)
        unusable = refinement(block, x)
        torch.testing.assert_close(unusable, block.at(x)(torch.zeros_like(x)), rtol=0, atol=1e-10)


def test_a_state_dict_brings_its_accelerator(x: Tensor) -> None:
    """Also into a head that has none or another one; a block without one has none afterwards."""
    heads = [MaskHead(CHANNELS, 3, Implicit(Anderson(6), GMRES())).double().eval() for _ in range(3)]
    for head, width in zip(heads, (4, 7), strict=False):
        assert isinstance(head.refinement, Implicit)
        head.refinement.accelerator = Accelerator(CHANNELS, width).double()
        nn.init.normal_(head.refinement.accelerator.step.leave.weight, std=0.1)
    given, wider, plain = heads
    detector = nn.ModuleDict({"mask_head": MaskHead(CHANNELS, 3, Implicit(Anderson(6), GMRES()))}).double().eval()
    for other in (wider, plain, detector):
        state = given.state_dict()
        if other is detector:
            state = {f"mask_head.{name}": value for name, value in state.items()}
        other.load_state_dict(state)
        found = detector["mask_head"] if other is detector else other
        with torch.no_grad():
            assert torch.equal(found(x), given(x))
    before = given.refinement.accelerator
    given.load_state_dict({"predictor.bias": torch.zeros(3)}, strict=False)
    given.load_state_dict(given.state_dict())
    assert given.refinement.accelerator is before is not None
    without = {name: value for name, value in given.state_dict().items() if "accelerator" not in name}
    given.load_state_dict(without)
    assert given.refinement.accelerator is None


def test_reproduction_mode_ignores_it(block: RefinementBlock, x: Tensor) -> None:
    refinement, plain = Implicit.published(4).eval(), Implicit.published(4).eval()
    refinement.accelerator = random_accelerator(0.05)
    with torch.no_grad():
        assert torch.equal(refinement(block, x), plain(block, x))


@pytest.mark.parametrize("budget", [1, 2, 3, 9])
def test_a_budget_counts_the_evaluations(block: RefinementBlock, x: Tensor, budget: int) -> None:
    count: list[int] = []
    block.gn3.register_forward_hook(lambda *_: count.append(1))
    with torch.no_grad():
        found = accelerated(budget=budget).eval()(block, x)
        assert len(count) == budget
        if budget == 1:
            x = x.contiguous(memory_format=torch.channels_last)  # as in evaluation on a CPU
            assert torch.equal(found, block(torch.zeros_like(x), x))


def test_gradients_in_evaluation_are_those_of_the_fixed_point(block: RefinementBlock, x: Tensor) -> None:
    """Finite differences of step 1e-4 have an error near 1e-7; the equilibrium has one near 1e-10."""
    x = x[:1, :, :2, :2].clone().requires_grad_()
    refinement = accelerated().eval()
    refinement.solver = Broyden(100, 1e-11)
    assert refinement.accelerator is not None
    assert torch.autograd.gradcheck(lambda x: refinement(block, x), x, eps=1e-4, atol=1e-5, rtol=1e-4)
    refinement(block, x).sum().backward()
    assert all(parameter.grad is None for parameter in refinement.accelerator.parameters())


def test_a_fit_learns_what_f_leaves_to_do_in_other_regions() -> None:
    """J = 0.6 M mixes channels, which the corrections can undo; three evaluations do not suffice without them."""
    generator = torch.Generator().manual_seed(3)
    mixing = 0.6 * torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q

    def at(x: Tensor) -> Map:
        return lambda z: torch.einsum("dc,nchw->ndhw", mixing, z) + x

    fitted_to, others = torch.randn(2, 64, CHANNELS, 3, 3, generator=generator)
    accelerator = fit_accelerator(at, fitted_to, width=1, start_epochs=200, rounds=(20, 20))
    f, zero = at(others), torch.zeros_like(others)
    with torch.no_grad():
        learned, plain = (solver.solve(f, zero).residual for solver in (Learned(accelerator, 2), Anderson(2)))
    assert (learned < 0.5 * plain).all()


def test_a_fit_leaves_f_and_the_random_state_as_they_are(block: RefinementBlock, x: Tensor) -> None:
    before, state = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    fit_accelerator(block.at, x, start_epochs=1, rounds=(1,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert all(parameter.grad is None for parameter in block.parameters())


def test_a_fit_does_not_depend_on_the_random_state(block: RefinementBlock, x: Tensor) -> None:
    fits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        fits.append(fit_accelerator(block.at, x, start_epochs=1, rounds=(1, 1)).state_dict())
    assert all(torch.equal(value, fits[1][name]) for name, value in fits[0].items())


def test_a_fit_without_equilibria_is_refused(block: RefinementBlock, x: Tensor) -> None:
    with pytest.raises(ValueError, match="none of 5 regions has an equilibrium"):
        fit_accelerator(block.at, torch.full_like(x, torch.nan))


@pytest.mark.parametrize("channels", [4, 64, 256])
def test_a_small_correction_costs_a_twentieth_of_an_evaluation(channels: int) -> None:
    block = 18 * channels**2
    width = small_width(channels)
    cost, more = (Accelerator(channels, w, direct=False).multiply_adds() / block for w in (width, width + 1))
    assert cost <= SMALL < more or width == 1


def test_a_small_correction_learns(block: RefinementBlock, x: Tensor) -> None:
    accelerator = fit_accelerator(block.at, x, width=2, direct=False, start_epochs=100, rounds=(50,))
    assert accelerator.step.direct is None
    f, zero = block.at(x), torch.zeros_like(x)
    learned, plain = (solver.solve(f, zero).residual.mean() for solver in (Learned(accelerator, 2), Anderson(2)))
    assert learned < plain


@pytest.mark.parametrize("width", [0, 33])
def test_widths_out_of_range_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width must be from 1 to 32, 4 times the channels; got {width}"):
        Accelerator(CHANNELS, width)


def test_the_cost_is_stated(x: Tensor) -> None:
    """Multiply-adds of one position: 1x1 layers C->C of both inputs, into and out of the width, and 3x3 layers."""
    c, w = 64, 16
    assert (
        Accelerator(c, w).multiply_adds() == 2 * c * c + 2 * c * w + c * w + 9 * w * 2 * w + 2 * 9 * w * w + 2 * c * w
    )
