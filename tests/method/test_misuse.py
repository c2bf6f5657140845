"""Misuse of the solvers raises an exception that names the value."""

from collections.abc import Callable

import pytest
import torch

from ifr.refine import Explicit, Implicit
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solver, make_solver


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), GMRES()], ids=repr)
def test_misuse_names_the_value(solver: Solver) -> None:
    z0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"shape of z, \(2, 3\); got \(2, 4\)"):
        solver.solve(lambda z: torch.zeros(2, 4), z0)
    with pytest.raises(TypeError, match=r"dtype of z, torch.float32; got torch.float64"):
        solver.solve(lambda z: z.double(), z0)
    with pytest.raises(TypeError, match=r"z0 must be floating point; got torch.int64"):
        solver.solve(lambda z: z, z0.long())
    with pytest.raises(ValueError, match=r"sample dimension; got shape \(\)"):
        solver.solve(lambda z: z, torch.tensor(0.0))
    with pytest.raises(TypeError, match="f must return a tensor; got tuple"):
        solver.solve(lambda z: (z,), z0)


@pytest.mark.parametrize("method", [Picard, Anderson, Broyden, GMRES, Broyden.published])
def test_invalid_settings(method: type[Picard]) -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1; got 0"):
        method(max_steps=0)
    with pytest.raises(TypeError, match=r"max_steps must be an integer; got 2\.5"):
        method(max_steps=2.5)
    with pytest.raises(ValueError, match="tol must be at least 0; got -1"):
        method(tol=-1)
    with pytest.raises(ValueError, match="tol must be at least 0; got nan"):
        method(tol=float("nan"))


def test_invalid_settings_of_one_method() -> None:
    with pytest.raises(ValueError, match="memory must be at least 1; got 0"):
        Anderson(memory=0)
    with pytest.raises(TypeError, match="memory must be an integer; got None"):
        Anderson(memory=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory must be at least 1; got 0"):
        Broyden(memory=0)
    with pytest.raises(ValueError, match=r"damping must be in \(0, 1\]; got 0"):
        Picard(damping=0)


def test_solvers_by_name() -> None:
    assert make_solver("broyden", max_steps=7) == Broyden(7)
    assert make_solver("broyden-published", max_steps=7) == Broyden.published(7)
    with pytest.raises(ValueError, match="unknown solver 'broiden'; did you mean 'broyden'"):
        make_solver("broiden")
    with pytest.raises(ValueError, match="unknown solver None; known solvers: anderson"):
        make_solver(None)
    with pytest.raises(TypeError, match="damping"):
        make_solver("broyden", damping=0.5)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
def test_an_f_that_works_in_place_is_refused(solver: Solver) -> None:
    z0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"must not change its argument in place; it changed z of shape \(2, 3\)"):
        solver.solve(lambda z: z.mul_(0.5), z0)
    assert torch.equal(z0, torch.ones(2, 3))


def test_a_solver_of_affine_maps_is_refused_for_the_equilibrium() -> None:
    with pytest.raises(ValueError, match="GMRES solves only affine ones"):
        Implicit(GMRES(), adjoint=GMRES())


@pytest.mark.parametrize(
    ("refinement", "error", "message"),
    [
        (lambda: Explicit(4.0), TypeError, r"steps must be an integer; got 4\.0"),  # type: ignore[arg-type]
        (lambda: Explicit(0), ValueError, "steps must be at least 1; got 0"),
        (lambda: Implicit(Broyden(), GMRES(), 2.5), TypeError, r"warmup_steps must be an integer; got 2\.5"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden, GMRES()), TypeError, "solver must be a solver.*; got <class"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden(), GMRES), TypeError, "adjoint must be a solver.*; got <class"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden(), GMRES(), penalty=3.0), TypeError, r"penalty must be a function.*; got 3\.0"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden(), GMRES(), correction=2.5), TypeError, r"correction must be an integer; got 2\.5"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden(), GMRES(), correction=-1), ValueError, "correction must be at least 0; got -1"),
        (lambda: Implicit(Broyden(), GMRES(), solve_dtype="bfloat16"), ValueError, "or None; got 'bfloat16'"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden(), GMRES(), solve_dtype=torch.int8), ValueError, r"or None; got torch\.int8"),
    ],
)
def test_settings_of_a_refinement_fail_when_it_is_built(
    refinement: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refinement()


def test_a_state_of_several_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match=r"z0 must be one tensor; got tuple"):
        Picard().solve(lambda z: z, (torch.zeros(2, 3), torch.zeros(2, 3)))  # type: ignore[arg-type]
