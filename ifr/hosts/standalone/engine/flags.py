"""What the workers tell each other about an iteration, without waiting for the device."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from ifr.solvers.host_copy import HostCopy


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry of all tensors is finite, on their device."""
    # The largest magnitude of each: NaN where it has one.
    return torch.stack(torch._foreach_norm(list(tensors), float("inf"))).isfinite().all()


class Flags:
    """The largest of every worker's numbers, on all of them.

    The numbers come to this machine's memory in the background; `read` waits only if they are not there yet.

    Args:
        values: (n,) numbers of this worker, on the device that it computes on.
        shared: whether there are other workers, which all make theirs.
    """

    def __init__(self, values: Tensor, *, shared: bool) -> None:
        self.values = values
        if shared:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        self._copy = HostCopy(values)

    def read(self) -> list[float]:
        """The numbers."""
        return self._copy.read().tolist()
