"""A training iteration: losses, gradients, update."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ifr.hosts.standalone.detector.sampling import SeededSampler, set_sampler
from ifr.hosts.standalone.engine.flags import Flags, all_finite
from ifr.hosts.standalone.engine.optimizer import Clip, build_clip, build_optimizer, set_learning_rate
from ifr.hosts.standalone.engine.schedule import Schedule, build_schedule
from ifr.processes.malloc import keep_large_buffers_apart
from ifr.processes.workers import Worker
from ifr.runs.average import MovingAverage

Batch = Sequence[dict[str, Any]]

_PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "APEX": torch.float16,
    "PYTORCH": torch.float16,
}


def precision(config: Any) -> torch.dtype | None:
    """Return the dtype that TRAINER.FP16 selects; None for float32.

    Raises:
        ValueError: TRAINER.FP16.TYPE is unknown.
    """
    settings = config.TRAINER.FP16
    if not settings.ENABLED:
        return None
    if settings.TYPE not in _PRECISIONS:
        raise ValueError(f"TRAINER.FP16.TYPE must be one of {list(_PRECISIONS)}, got {settings.TYPE!r}")
    return _PRECISIONS[settings.TYPE]


_MAX_SKIPPED = 40  # consecutive halvings of the float16 loss scale; after them it is below 1


@dataclass(frozen=True)
class Step:
    """An iteration of this worker: its batch, and its losses by name if they were computed."""

    iteration: int
    batch: Batch
    losses: Mapping[str, Tensor] = field(default_factory=dict)


class NotFinite(FloatingPointError):
    """A loss, gradient or prediction is not finite; model and optimizer are in their state before the step.

    Args:
        step: this worker's step.
        cause: what is not finite.
        together: whether all workers raise this for the same iteration, or only this one.
    """

    def __init__(self, step: Step, cause: str, *, together: bool) -> None:
        super().__init__(cause)
        self.step, self.together = step, together


@dataclass(frozen=True)
class _Pending:
    """A step whose flags have not been read."""

    step: Step
    flags: Flags
    statistics: list[Tensor]
    """The statistics of batch normalisation before the step."""


@dataclass
class Trainer:
    """Trains a detector; an iteration depends only on the state before it, its number, the seed and its images.

    On a GPU this holds up to rounding, because some kernels add up in no fixed order, unless the run is deterministic
    (`ifr.runs.determinism`).

    Every step checks its losses and gradients. If one is not finite, the device skips the update, and this process
    raises one step later or in `settle`, so that it need not wait for the device. With float16, the gradient scaler
    skips up to 40 consecutive updates with non-finite gradients.

    Args:
        model: maps images with annotations to losses in training mode; has `set_iteration`.
        optimizer: the optimizer of the model's parameters.
        schedule: maps an iteration to its learning rate.
        worker: this process among those that share each batch.
        seed: seeds the sampling of anchors and proposals.
        parts: number of equal parts that this worker's images are split into.
        clip: clips the gradients; None for no clipping.
        dtype: the mixed-precision dtype; None for float32.
        average: the moving average of the model's weights; None for none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    worker: Worker = field(default_factory=Worker)
    seed: int = 0
    parts: int = 1
    clip: Clip | None = None
    dtype: torch.dtype | None = None
    average: MovingAverage | None = None

    def __post_init__(self) -> None:
        """Wrap the model for data parallelism, make its sampling reproducible, and create the gradient scaler."""
        self.device = next(self.model.parameters()).device
        self._sampler = SeededSampler()
        set_sampler(self.model, self._sampler)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self._parallel: nn.Module = self.model
        if self.worker.world_size > 1:
            gpus = [self.device.index] if self.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.model, device_ids=gpus, gradient_as_bucket_view=True)
            # No other buffer changes. torch 2.14 deprecates the argument, and 2.10 does not have its new name.
            self._parallel.broadcast_buffers = bool(self._statistics())
        self._pending: _Pending | None = None
        self._skipped = torch.zeros((), device=self.device)
        self.stop_signal = 0
        """A signal that some worker received before the last settled step; 0 for none."""

    def step(self, iteration: int, batch: Batch, stop: Callable[[], int] = lambda: 0) -> dict[str, Tensor]:
        """Train on this worker's images; return this worker's losses by name, detached.

        Args:
            iteration: number of the iteration, from 0.
            batch: this worker's images.
            stop: returns a signal that asks this worker to stop, or 0; all see it in `stop_signal` after the same step.

        Raises:
            ValueError: the images cannot be split evenly into parts.
            NotFinite: a loss or gradient of the previous step, or a prediction of this one, is not finite.
        """
        if len(batch) % self.parts or not batch:
            raise ValueError(f"{len(batch)} images cannot be split evenly into {self.parts} parts")
        set_learning_rate(self.optimizer, self.schedule(iteration))
        statistics = [buffer.clone() for buffer in self._statistics()]
        try:
            losses = self.differentiate(iteration, batch)
        except FloatingPointError as error:
            self.settle(together=False)
            self._restore(statistics)
            raise NotFinite(Step(iteration, batch), str(error), together=False) from error
        self.settle()
        flags = self._check(losses, stop())
        self._update(found=flags.values[:2].amax())
        self._pending = _Pending(Step(iteration, batch, losses), flags, statistics)
        return losses

    def settle(self, *, together: bool = True) -> None:
        """Wait for the latest step and complete it, if it is pending; all workers must call this after the same step.

        Raises:
            NotFinite: a loss or gradient of that step is not finite.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        loss, gradient, stop_signal = pending.flags.read()
        self.stop_signal = self.stop_signal or int(stop_signal)
        if loss or gradient:
            self._restore(pending.statistics)
            raise NotFinite(pending.step, "a loss" if loss else "a gradient", together=together)
        if self.average is not None:
            self.average.update()

    def _check(self, losses: Mapping[str, Tensor], stop_signal: int) -> Flags:
        """Combine over all workers: whether losses are not finite, whether gradients are not, and the stop signal."""
        loss, gradient = ~all_finite(losses.values()), ~all_finite(self._gradients())
        if self.scaler.is_enabled():
            self._skipped = torch.where(gradient, self._skipped + 1, 0)
            gradient = self._skipped >= _MAX_SKIPPED
        stop = torch.full((), float(stop_signal), device=self.device)
        return Flags(torch.stack([loss.float(), gradient.float(), stop]), shared=self.worker.world_size > 1)

    def _gradients(self) -> list[Tensor]:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _statistics(self) -> list[Tensor]:
        """Return the buffers that a training step changes."""
        norms = (module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return [buffer for norm in norms for buffer in norm.buffers()]

    @torch.no_grad()
    def _restore(self, statistics: Sequence[Tensor]) -> None:
        for buffer, before in zip(self._statistics(), statistics, strict=True):
            buffer.copy_(before)

    def differentiate(self, iteration: int, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients, averaged over all workers, and return this worker's losses.

        Raises:
            FloatingPointError: the model's predictions are not finite.
        """
        self.model.train()
        self.model.set_iteration(iteration)  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        size = len(batch) // self.parts
        for start in range(0, len(batch), size):
            self._sampler.begin(self._seeds(iteration, len(batch), start, size))
            with self._accumulating(last=start + size == len(batch)):
                losses = self._losses(batch[start : start + size])
                mean = torch.stack(list(losses.values())).sum() / self.parts
                self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                part = loss.detach() / self.parts
                total[name] = total[name] + part if name in total else part
        return total

    def _losses(self, images: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            losses: dict[str, Tensor] = self._parallel(images)
        return {name: loss.float() for name, loss in losses.items()}

    def _update(self, found: Tensor) -> None:
        """Update the parameters unless `found`, a scalar on the device, is nonzero."""
        if self.scaler.is_enabled():  # it derives the optimizer's `found_inf` from the gradients
            self._gradients()[0].add_(torch.where(found > 0, torch.nan, 0.0))
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        if not self.scaler.is_enabled():
            if self.optimizer.defaults["fused"]:
                self.optimizer.found_inf = found  # type: ignore[attr-defined]
            elif found:
                return
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients between workers only in the last part."""
        if isinstance(self._parallel, DistributedDataParallel) and not last:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _seeds(self, iteration: int, images: int, start: int, count: int) -> list[int]:
        """Return a seed for every image, from its position in the combined batch of all workers."""
        first = self.worker.rank * images + start
        return [_hash(self.seed, iteration, first + i) for i in range(count)]


def _hash(*values: int) -> int:
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0]) >> 1


def build_trainer(config: Any, model: nn.Module, worker: Worker) -> Trainer:
    """Build the trainer that SOLVER and TRAINER describe.

    Raises:
        ValueError: a setting has an unsupported value.
    """
    ema = config.SOLVER.EMA
    if next(model.parameters()).device.type == "cpu":
        keep_large_buffers_apart()
    return Trainer(
        model=model,
        optimizer=build_optimizer(config, model),
        schedule=build_schedule(config),
        worker=worker,
        seed=int(config.SEED),
        parts=int(config.SOLVER.BATCH_SUBDIVISIONS),
        clip=build_clip(config),
        dtype=precision(config),
        average=MovingAverage(model, float(ema.DECAY)) if ema.ENABLED else None,
    )
