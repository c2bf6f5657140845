"""Solves replayed as CUDA graphs, so that a GPU does not wait for Python between a solver's small operations."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ifr.block import RefinementBlock
from ifr.equilibrium import AdjointMap, image_of
from ifr.groups import in_graph
from ifr.solvers import GMRES, Anderson, Broyden, Learned, Picard, Solver
from ifr.solvers.leaving import all_steps
from ifr.solvers.precision import autocast_enabled
from ifr.solvers.solution import Map, RoundedMap, Solution

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Graphs kept by one `CudaGraphs`; before another is captured, all are dropped."""

REPLAYED = (Anderson, Broyden, Picard, Learned, GMRES)
"""The solvers whose solves can be replayed."""

Outputs = tuple[Tensor, ...]
Given = TypeVar("Given", bound="Solver | None")


class CudaGraphs:
    """The CUDA graphs of a refinement: one per solver, padded number of regions, shape and precision.

    A solve is captured when it is first needed, and again if the weights of the block move to other memory; new values
    of the weights are seen without that. A graph takes all steps, whether or not regions have converged; as stopped
    regions keep their result, the result is the same. All graphs share the memory of a solve, and each keeps that of
    its inputs and results. Copies and pickles start without graphs.

    Attributes:
        enabled: use graphs.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._captured: dict[Hashable, tuple[Callable[[], None], Outputs, Outputs]] = {}
        self._memory: dict[torch.device, tuple[Any, torch.cuda.Stream]] = {}
        self._done: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        self._warned = False

    def solver(self, block: RefinementBlock, x: Tensor, solver: Given) -> Solver | Given:
        """Return a solver like `solver` for f(.; x) of the block, and for its adjoint, that uses graphs if it can.

        It does for regions x (N, C, H, W) on a GPU and the solvers of `REPLAYED`. A block with hooks or
        parametrizations is not captured, with a warning, because a replay would not run them. Otherwise the given
        solver is returned.
        """
        if not isinstance(solver, REPLAYED) or not (self.enabled and x.is_cuda and len(x)) or in_graph():
            return solver
        with torch.cuda.device(x.device):
            if torch.cuda.is_current_stream_capturing():
                return solver
        if any(map(_runs_other_code, block.modules())):
            if not self._warned:
                logger.warning("the solver runs without CUDA graphs, because the block has hooks or parametrizations")
            self._warned = True
            return solver
        if not list(block.parameters()):  # a replica of DataParallel, whose weights move at every call
            return solver
        return _ReplayedSolver(self, solver, block, x)

    def run(self, key: Hashable, function: Callable[..., Outputs], inputs: Outputs) -> Outputs:
        """Return function(*inputs) for inputs and outputs (N, ...), each row of which is computed on its own.

        Args:
            key: tells functions apart, and must change with the memory that a function reads besides its inputs.
            function: must not wait for the GPU.
            inputs: on one GPU.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        count, size, device = len(inputs[0]), padded(len(inputs[0])), inputs[0].device
        whole_key = key, size, device, _modes(), *map(_layout, inputs)
        with self._lock, torch.cuda.device(device), torch.no_grad():
            if self._done is not None:
                torch.cuda.current_stream().wait_event(self._done)  # another stream may still be replaying
            if whole_key not in self._captured:
                if len(self._captured) >= MOST_GRAPHS:
                    self._captured.clear()
                    self._memory.clear()
                with torch.inference_mode(False):
                    own = tuple(_pad(each, size) for each in inputs)
                    replay, outputs = self._capture(functools.partial(function, *own), device)
                self._captured[whole_key] = replay, own, outputs
            replay, own, outputs = self._captured[whole_key]
            for place, given in zip(own, inputs, strict=True):
                place[:count].copy_(given)
            replay()
            results = tuple(each[:count].clone() for each in outputs)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()
        return results

    def _capture(self, function: Callable[[], Outputs], device: torch.device) -> tuple[Callable[[], None], Outputs]:
        """Capture a function; return what replays it, and the outputs that a replay fills."""
        if device not in self._memory:  # captures share memory only on one stream
            self._memory[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        pool, stream = self._memory[device]
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.stream(current):  # comes back to it even if the capture fails
                stream.wait_stream(current)
                with torch.cuda.stream(stream), all_steps():
                    function()  # libraries choose algorithms and allocate workspaces, which they cannot in a graph
                current.wait_stream(stream)
                # Other threads, such as a data loader's that pins memory, may use the GPU during the capture.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = function()
        except RuntimeError as error:
            raise RuntimeError(
                "this solve cannot be captured as a CUDA graph; start again without cuda_graphs=True, in a "
                "configuration MODEL.ROI_MASK_HEAD.CUDA_GRAPHS True"
            ) from error
        return graph.replay, outputs

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[bool]]:
        return CudaGraphs, (self.enabled,)


def check_replayed(cuda_graphs: bool, as_published: bool, *solvers: Solver | None) -> None:
    """Check that solves with these solvers, None for none, can be replayed if they shall be.

    Raises:
        TypeError: a solver is not in `REPLAYED`.
        ValueError: as_published, which reproduces the 2021 code.
    """
    if cuda_graphs and as_published:
        raise ValueError("as_published reproduces the 2021 code, which has no cuda_graphs")
    for solver in solvers if cuda_graphs else ():
        if solver is not None and not isinstance(solver, REPLAYED):
            names = ", ".join(each.__name__ for each in REPLAYED)
            raise TypeError(f"cuda_graphs needs one of the solvers {names}; got {solver!r}")


def _runs_other_code(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or is_parametrized(module)


def padded(count: int) -> int:
    """Return the number of regions of the graph for `count` of them: a multiple of 8, above 64 at most 1.25 `count`."""
    step = max(8, 1 << max(0, (count - 1).bit_length() - 3))
    return -(-count // step) * step


class _ReplayedSolver:
    """Solves for the equilibrium of f(.; x), or for its adjoint, with `solver` in a CUDA graph."""

    def __init__(self, graphs: CudaGraphs, solver: Solver, block: RefinementBlock, x: Tensor) -> None:
        self._graphs, self._solver, self._block, self._x = graphs, solver, block, x.detach()
        self._version = None if x.is_inference() else x._version
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
            if self._version is not None and self._x._version != self._version:
                raise RuntimeError("with CUDA graphs, x must not change in place between a solve and its gradient")
            function, inputs = self._adjoint(roundoff), (self._x, inner.z.detach(), inner.right)
        key = type(inner), self._solver, roundoff, self._autocast, *self._read()
        return Solution(*self._graphs.run(key, function, inputs))

    def _forward(self, x: Tensor, z0: Tensor) -> Outputs:
        return _tensors(self._solver.solve(self._block.at(x), z0))

    def _adjoint(self, roundoff: float | None) -> Callable[..., Outputs]:
        def function(x: Tensor, z: Tensor, right: Tensor) -> Outputs:
            # Without the cache, whose casts of weights would be made in the warm-up and be gone after this backward.
            autocast = torch.autocast("cuda", self._autocast, self._autocast is not None, cache_enabled=False)
            with torch.enable_grad(), autocast:
                z = z.detach().requires_grad_()
                linear = image_of(self._block.at(x), z)
            f: Map = AdjointMap(linear, z, right)
            return _tensors(
                self._solver.solve(f if roundoff is None else RoundedMap(f, roundoff), torch.zeros_like(right))
            )

        return function

    def _read(self) -> Iterable[Hashable]:
        """What a graph reads besides its inputs: where the weights are, and constants."""
        modules = [self._block, *([self._solver.accelerator] if isinstance(self._solver, Learned) else [])]
        for part in (each for module in modules for each in module.modules()):
            yield part.training, getattr(part, "num_groups", None), getattr(part, "eps", None)
            for weight in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                yield weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


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
