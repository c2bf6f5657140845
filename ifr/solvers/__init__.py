"""Fixed-point solvers: each takes settings, solves every sample independently and returns a `Solution`."""

from __future__ import annotations

import difflib
from typing import Any

from ifr.solvers.anderson import Anderson
from ifr.solvers.broyden import Broyden
from ifr.solvers.gmres import GMRES
from ifr.solvers.learned import Accelerator, Learned
from ifr.solvers.picard import Picard
from ifr.solvers.published import PublishedBroyden
from ifr.solvers.solution import Solution, Solver, Status

__all__ = [
    "GMRES",
    "Accelerator",
    "Anderson",
    "Broyden",
    "Learned",
    "Picard",
    "PublishedBroyden",
    "Solution",
    "Solver",
    "Status",
    "make_solver",
]

_SOLVERS = {
    "anderson": Anderson,
    "broyden": Broyden,
    "broyden-published": PublishedBroyden,
    "gmres": GMRES,
    "picard": Picard,
}


def make_solver(name: str, **settings: Any) -> Solver:
    """Build a solver by name.

    Args:
        name: anderson, broyden, broyden-published, gmres or picard, as in a config file.
        settings: the solver's settings, such as `max_steps` and `tol`.

    Raises:
        ValueError: the name is unknown, or a setting is out of its range.
        TypeError: the solver has no such setting.
    """
    if name not in _SOLVERS:
        nearest = difflib.get_close_matches(str(name), _SOLVERS, 1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known solvers: {', '.join(_SOLVERS)}"
        raise ValueError(f"unknown solver {name!r}; {hint}")
    return _SOLVERS[name](**settings)
