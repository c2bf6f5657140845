"""Solves replayed as CUDA graphs, so that a GPU does not wait for Python between a solver's small operations."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ifr.block import RefinementBlock
from ifr.equilibrium import AdjointMap, image_of
from ifr.groups import in_graph
from ifr.solvers import GMRES, Anderson, Broyden, Learned, Picard, Solver
from ifr.solvers.precision import autocast_enabled
from ifr.solvers.solution import Map, RoundedMap, Solution

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Graphs kept by one `CudaGraphs`; before another is captured, all are dropped."""

Outputs = tuple[Tensor, ...]
Given = TypeVar("Given", bound="Solver | None")


class CudaGraphs:
    """The CUDA graphs of a refinement: one per solver, padded number of regions, shape and precision.

    A solve is captured when it is first needed, and again if the parameters of the block move to other memory; new
    values of the parameters are seen without that. A graph takes all steps, whether or not regions have converged; as
    stopped regions keep their result, it is the same. The graphs share their memory, which they keep. If one cannot be
    captured, a warning says so, and none is used from then on. Copies and pickles start without graphs.

    Attributes:
        enabled: use graphs.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._captured: dict[Hashable, tuple[Callable[[], None], Outputs, Outputs]] = {}
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def solver(self, block: RefinementBlock, x: Tensor, solver: Given) -> Solver | Given:
        """Return a solver like `solver` for f(.; x) of the block, and for its adjoint, that uses graphs if it can.

        They are used for regions x (N, C, H, W) on a GPU and for the solvers of IFR, except that of 2021; otherwise the
        given solver is returned, or None for None.
        """
        if not isinstance(solver, Anderson | Broyden | Picard | Learned | GMRES):
            return solver
        if not (self.enabled and x.is_cuda and len(x)) or in_graph():
            return solver
        with torch.cuda.device(x.device):
            return solver if torch.cuda.is_current_stream_capturing() else _ReplayedSolver(self, solver, block, x)

    def run(self, key: Hashable, function: Callable[..., Outputs], inputs: Outputs) -> Outputs:
        """Return function(*inputs) for inputs and outputs (N, ...), each row of which is computed on its own.

        Args:
            key: tells functions apart, and must change with the memory that a function reads besides its inputs.
            function: must not wait for the GPU.
            inputs: on one GPU.
        """
        count, size = len(inputs[0]), padded(len(inputs[0]))
        whole_key = key, size, inputs[0].device, _modes(), *map(_layout, inputs)
        with self._lock, torch.cuda.device(inputs[0].device), torch.no_grad():
            if self._done is not None:
                torch.cuda.current_stream().wait_event(self._done)  # another stream may still be replaying
            if whole_key not in self._captured:
                with torch.inference_mode(False):
                    found = self._capture(function, tuple(_pad(each, size) for each in inputs))
                if found is None:
                    return function(*inputs)
                self._captured[whole_key] = found
            replay, own, outputs = self._captured[whole_key]
            for place, given in zip(own, inputs, strict=True):
                place[:count].copy_(given)
            replay()
            results = tuple(each[:count].clone() for each in outputs)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()
        return results

    def _capture(
        self, function: Callable[..., Outputs], own: Outputs
    ) -> tuple[Callable[[], None], Outputs, Outputs] | None:
        if len(self._captured) >= MOST_GRAPHS:
            self._captured.clear()
            self._pool = None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            replay, outputs = capture(lambda: function(*own), self._pool)
        except RuntimeError as error:
            logger.warning("the solver runs without CUDA graphs, because it could not be captured: %s", error)
            self.enabled = False
            return None
        return replay, own, outputs

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[bool]]:
        return CudaGraphs, (self.enabled,)


def capture(function: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
    """Capture a function as a CUDA graph; return what replays it, and the outputs that a replay fills."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # libraries choose algorithms and allocate workspaces, which they cannot in a graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as one that pins memory for a data loader, go on meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


def padded(count: int) -> int:
    """Return the number of regions of the graph for `count` of them: a multiple of 8, above 64 at most 1.25 `count`."""
    step = max(8, 1 << max(0, (count - 1).bit_length() - 3))
    return -(-count // step) * step


class _ReplayedSolver:
    """Solves for the equilibrium of f(.; x), or for its adjoint, with `solver` in a CUDA graph."""

    def __init__(self, graphs: CudaGraphs, solver: Solver, block: RefinementBlock, x: Tensor) -> None:
        self._graphs, self._solver, self._block, self._x = graphs, solver, block, x.detach()
        self._autocast = torch.get_autocast_dtype("cuda") if autocast_enabled("cuda") else None

    @property
    def per_sample(self) -> bool:
        return self._solver.per_sample

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """Solve f(z) = z, where f is f(.; x) of the block or an `AdjointMap` of it; the adjoint starts at zero."""
        roundoff = f.roundoff if isinstance(f, RoundedMap) else None
        inner = f.f if isinstance(f, RoundedMap) else f
        function: Callable[..., Outputs] = self._forward
        inputs: Outputs = (self._x, z0.detach())
        if isinstance(inner, AdjointMap):
            function, inputs = self._adjoint(roundoff), (self._x, inner.z.detach(), inner.right)
        key = type(inner), self._solver, roundoff, self._autocast, *self._memory()
        return Solution(*self._graphs.run(key, function, inputs))

    def _forward(self, x: Tensor, z0: Tensor) -> Outputs:
        return _tensors(self._solver.solve(self._block.at(x), z0))

    def _adjoint(self, roundoff: float | None) -> Callable[..., Outputs]:
        def function(x: Tensor, z: Tensor, right: Tensor) -> Outputs:
            with torch.enable_grad(), torch.autocast("cuda", self._autocast, enabled=self._autocast is not None):
                z = z.detach().requires_grad_()
                linear = image_of(self._block.at(x), z)
            f: Map = AdjointMap(linear, z, right)
            return _tensors(
                self._solver.solve(f if roundoff is None else RoundedMap(f, roundoff), torch.zeros_like(right))
            )

        return function

    def _memory(self) -> Iterable[Hashable]:
        """Where the parameters are that a graph reads."""
        modules = [self._block, *([self._solver.accelerator] if isinstance(self._solver, Learned) else [])]
        return [(each.data_ptr(), each.dtype) for module in modules for each in module.parameters()]


def _tensors(solution: Solution) -> Outputs:
    found = solution.z, solution.residual, solution.steps, solution.status
    return found if solution.image is None else (*found, solution.image)


def _pad(given: Tensor, size: int) -> Tensor:
    """Return a copy with `size` rows, the last of them zero, in the memory format of `given`."""
    own = torch.cat((given, given.new_zeros(size - len(given), *given.shape[1:])))
    channels_last = own.dim() == 4 and given.is_contiguous(memory_format=torch.channels_last)
    return own.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _layout(given: Tensor) -> Hashable:
    return given.shape[1:], given.dtype, given.is_contiguous()


def _modes() -> tuple[Hashable, ...]:
    """What torch's global settings say about the precision and the algorithms of a captured operation."""
    return (
        torch.get_autocast_dtype("cuda") if autocast_enabled("cuda") else None,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )
