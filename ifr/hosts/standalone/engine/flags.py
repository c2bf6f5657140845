"""Numbers that the workers exchange about an iteration without blocking on the device."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from ifr.solvers.host_copy import HostCopy


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return a bool scalar on the tensors' device: whether all entries are finite."""
    # The maximum norm of a tensor is NaN if it contains NaN.
    return torch.stack(torch._foreach_norm(list(tensors), float("inf"))).isfinite().all()


class Flags:
    """The element-wise maximum of `values` over all workers.

    It is copied to the host in the background; `read` waits only if the copy is unfinished.

    Args:
        values: (n,) numbers of this worker, on its device.
        shared: whether there are other workers, which must all create their `Flags` as well.
    """

    def __init__(self, values: Tensor, *, shared: bool) -> None:
        self.values = values
        if shared:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        self._copy = HostCopy(values)

    def read(self) -> list[float]:
        """Return the n maxima."""
        return self._copy.read().tolist()
