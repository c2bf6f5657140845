"""The mask head compared with the published code and with the true equilibrium."""

import pytest
import torch
from avx512 import bound_with_avx512
from torch import Tensor

from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit, set_phase
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solution, Solver, Status

Reference = dict[str, Tensor]


def build(reference: Reference, refinement: Explicit | Implicit, dtype: torch.dtype = torch.float32) -> MaskHead:
    head = MaskHead(16, 5, refinement)
    head.load_state_dict({key[3:]: value for key, value in reference.items() if key.startswith("sd.")})
    return head.to(dtype)


def gradients(head: MaskHead, x: Tensor, cotangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of a training pass and the gradients of (logits * cotangent).sum()."""
    x = x.clone().requires_grad_()
    logits = head.train()(x)
    (logits * cotangent).sum().backward()
    found = {name: parameter.grad for name, parameter in head.named_parameters()} | {"x": x.grad}
    return logits.detach(), {name: gradient for name, gradient in found.items() if gradient is not None}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def compare_gradients(found: Reference, reference: Reference, prefix: str, tolerance: float) -> None:
    expected = {key.removeprefix(prefix): value for key, value in reference.items() if key.startswith(prefix)}
    assert set(found) == set(expected)
    errors = {name: relative_error(found[name], value) for name, value in expected.items()}
    assert max(errors.values()) < tolerance, errors


# Tolerances of the float32 comparisons: perturbing x by 1e-7 changes the published 15-step logits by up to 1e-4 and
# their gradient by 1.4e-3 relative; the explicit results change far less.


def trace(head: MaskHead, x: Tensor, steps: int) -> tuple[Solution, Tensor]:
    """Return the published solver's solution and the norm of f(z) - z over the batch at each evaluation."""
    norms: list[float] = []
    with torch.no_grad():
        block = head.repeat_block.at(x)

        def f(z: Tensor) -> Tensor:
            fz = block(z)
            norms.append(float((fz - z).norm()))
            return fz

        solution = Broyden.published(steps).solve(f, torch.zeros_like(x))
    return solution, torch.tensor(norms, dtype=torch.float64)


def test_published_evaluation_and_trace(ifr_head: Reference) -> None:
    head = build(ifr_head, Implicit.published(15)).eval()
    solution, norms = trace(head, ifr_head["x"], 15)
    # The last value of the published float32 trace differs by 4.5 % from float64; the others agree to 1e-3.
    torch.testing.assert_close(norms[15], ifr_head["eval.F15.trace"][15], rtol=5e-2, atol=0)
    torch.testing.assert_close(solution.z, ifr_head["eval.F15.query_feat"], rtol=0, atol=2e-3)
    with torch.no_grad():
        torch.testing.assert_close(head(ifr_head["x"]), ifr_head["eval.F15.logits"], rtol=0, atol=2e-4)
    with bound_with_avx512():  # 1.03e-3 without it
        torch.testing.assert_close(norms[:15], ifr_head["eval.F15.trace"][:15], rtol=1e-3, atol=0)


def test_published_training(ifr_head: Reference) -> None:
    head = build(ifr_head, Implicit.published(15))
    logits, found = gradients(head, ifr_head["x"], ifr_head["cotangent"])
    torch.testing.assert_close(logits, ifr_head["train.implicit.F15.logits"], rtol=0, atol=2e-4)
    compare_gradients(found, ifr_head, "train.implicit.F15.grad.", 3e-3)


def test_published_backward_trace(ifr_head: Reference) -> None:
    solutions: dict[str, Solution] = {}
    head = build(ifr_head, Implicit.published(15))
    head.refinement.observe = solutions.__setitem__
    gradients(head, ifr_head["x"], ifr_head["cotangent"])
    for name in ("forward", "backward"):
        assert int(solutions[name].steps[0]) == int(ifr_head[f"train.implicit.F15.{name}.nstep"])
    assert solutions["forward"].residual.norm() * (16 * 6 * 6) ** 0.5 == pytest.approx(
        float(ifr_head["train.implicit.F15.forward.trace"].min()), rel=1e-3
    )


@pytest.mark.parametrize("steps", [15, 25])
def test_published_in_float64(ifr_head: Reference, truth: Reference, steps: int) -> None:
    # Rounding error is amplified as in float32, and more steps amplify it more.
    x, cotangent = ifr_head["x"].double(), ifr_head["cotangent"].double()
    head = build(ifr_head, Implicit.published(steps), torch.float64)
    _, norms = trace(head, x, steps)
    torch.testing.assert_close(norms, truth[f"official_f64.F{steps}.trace"], rtol=1e-8, atol=0)
    logits, found = gradients(head, x, cotangent)
    torch.testing.assert_close(logits, truth[f"official_f64.F{steps}.logits"], rtol=0, atol=1e-9)
    for name in ("x", "repeat_block.conv1.weight_v"):
        assert relative_error(found[name], truth[f"official_f64.F{steps}.grad.{name}"]) < 1e-8


@pytest.mark.parametrize("variant", ["ifr", "weight_sharing"])
def test_explicit_training(ifr_head: Reference, weight_sharing_head: Reference, variant: str) -> None:
    reference = ifr_head if variant == "ifr" else weight_sharing_head
    head = build(reference, Implicit.published() if variant == "ifr" else Explicit())
    set_phase(head, "explicit")
    logits, found = gradients(head, reference["x"], reference["cotangent"])
    torch.testing.assert_close(logits, reference["train.explicit.logits"], rtol=0, atol=1e-5)
    compare_gradients(found, reference, "train.explicit.grad.", 1e-5)


def test_weight_sharing_evaluation(weight_sharing_head: Reference) -> None:
    with torch.no_grad():
        logits = build(weight_sharing_head, Explicit()).eval()(weight_sharing_head["x"])
    torch.testing.assert_close(logits, weight_sharing_head["eval.logits"], rtol=0, atol=1e-5)


SOLVERS = [Picard(1000, 1e-12), Anderson(300, 1e-12), Broyden(200, 1e-12), Broyden(200, 1e-12, memory=None)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_solvers_reach_the_equilibrium(ifr_head: Reference, truth: Reference, solver: Solver) -> None:
    head = build(ifr_head, Implicit(solver, GMRES()), torch.float64)
    with torch.no_grad():
        x = ifr_head["x"].double()
        solution = solver.solve(head.repeat_block.at(x), torch.zeros_like(x))
    torch.testing.assert_close(solution.z, truth["z_star"], rtol=0, atol=1e-8)


def test_broyden_converges_where_the_published_solver_diverges(ifr_head: Reference) -> None:
    """The published solver overwrites its pairs after 27 of 200 steps; its residual grows by a factor of a million."""
    x = ifr_head["x"].double()
    head = build(ifr_head, Implicit.published(), torch.float64)
    with torch.no_grad():
        f, z0 = head.repeat_block.at(x), torch.zeros_like(x)
        assert Broyden(200, 1e-12).solve(f, z0).status.tolist() == [Status.CONVERGED] * 2
        published = Broyden.published(200, 1e-12).solve(f, z0)
    assert published.status.tolist() == [Status.DIVERGED] * 2
    assert float(published.residual.max()) > 1e-4


@pytest.mark.parametrize("adjoint", [*SOLVERS, GMRES(100, 1e-12)], ids=repr)
def test_adjoints_reach_the_implicit_gradient(ifr_head: Reference, truth: Reference, adjoint: Solver) -> None:
    head = build(ifr_head, Implicit(Broyden(200, 1e-12), adjoint), torch.float64)
    logits, found = gradients(head, ifr_head["x"].double(), ifr_head["cotangent"].double())
    torch.testing.assert_close(logits, truth["logits"], rtol=0, atol=1e-8)
    compare_gradients(found, truth, "grad.", 1e-6)


def test_gmres_is_the_most_accurate_adjoint(ifr_head: Reference, truth: Reference) -> None:
    """With the same number of products, the gradient of `GMRES` is the most accurate; so it is the default adjoint."""
    errors = {}
    for adjoint in (Picard(15, 0), Anderson(15, 0), Broyden(15, 0), GMRES(15, 0)):
        head = build(ifr_head, Implicit(Broyden(200, 1e-12), adjoint), torch.float64)
        _, found = gradients(head, ifr_head["x"].double(), ifr_head["cotangent"].double())
        errors[type(adjoint).__name__] = relative_error(found["x"], truth["grad.x"])
    assert errors["GMRES"] == min(errors.values()), errors
    assert errors["GMRES"] < 0.6 * errors["Broyden"], errors
