"""Connects a mask head with cvpods' event storage: the iteration comes from it, figures of the solver go into it."""

import functools
from typing import Any

from torch import nn

from ifr.hosts.cvpods.framework import get_event_storage
from ifr.refine import Implicit, set_phase
from ifr.solvers import Solution, Status


def follow_training(head: nn.Module, explicit_iterations: int) -> None:
    """Let a mask head change from the explicit to the implicit phase by itself, and record its solves in training.

    Args:
        head: has an `Implicit`.
        explicit_iterations: training starts with this many iterations of the explicit path.
    """
    head.register_forward_pre_hook(functools.partial(_choose_phase, explicit_iterations))
    for part in head.modules():
        if isinstance(part, Implicit):
            part.observe = functools.partial(_record, part)


def _choose_phase(explicit_iterations: int, head: nn.Module, _inputs: Any) -> None:
    if head.training:
        set_phase(head, "explicit" if get_event_storage().iter < explicit_iterations else "implicit")


def _record(part: Implicit, name: str, solution: Solution) -> None:
    """Means over the regions of one solve; cvpods smooths them, and reads its own losses as often."""
    if not part.training or not len(solution.residual):
        return
    try:
        storage = get_event_storage()
    except AssertionError:  # a backward pass after the storage was closed, which cvpods' runner never does
        return
    residual = solution.residual.detach()
    storage.put_scalar(f"solver_{name}_residual", residual[residual.isfinite()].mean().nan_to_num().item())
    storage.put_scalar(f"solver_{name}_steps", solution.steps.float().mean().item())
    converged = solution.status == int(Status.CONVERGED)
    storage.put_scalar(f"solver_{name}_converged", converged.float().mean().item())
