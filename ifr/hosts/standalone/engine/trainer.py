"""One training iteration: losses, gradients, update."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ifr.hosts.standalone.detector.sampling import SeededSampler, set_sampler
from ifr.hosts.standalone.engine.ema import MovingAverage
from ifr.hosts.standalone.engine.optimizer import Clip, set_learning_rate
from ifr.hosts.standalone.engine.schedule import WarmupMultiStep
from ifr.hosts.standalone.engine.workers import Worker

Batch = Sequence[dict[str, Any]]

_PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "APEX": torch.float16,
    "PYTORCH": torch.float16,
}


def precision(config: Any) -> torch.dtype | None:
    """The type in which TRAINER.FP16 asks to compute; None for float32.

    Raises:
        ValueError: there is no such type.
    """
    settings = config.TRAINER.FP16
    if not settings.ENABLED:
        return None
    if settings.TYPE not in _PRECISIONS:
        raise ValueError(f"TRAINER.FP16.TYPE must be one of {list(_PRECISIONS)}, got {settings.TYPE!r}")
    return _PRECISIONS[settings.TYPE]


@dataclass
class Trainer:
    """Trains a detector; what an iteration computes depends on its number, the seed and its images alone.

    Args:
        model: in training mode it maps images with annotations to losses, and has `set_iteration`.
        optimizer: of the model's parameters.
        schedule: learning rate of every iteration.
        worker: this process among those that share each batch.
        seed: of the choice of samples.
        parts: the batch passes through the model in so many parts.
        clip: applied to the gradients.
        dtype: of mixed precision; None for float32.
        average: follows the model's weights.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: WarmupMultiStep
    worker: Worker = field(default_factory=Worker)
    seed: int = 0
    parts: int = 1
    clip: Clip | None = None
    dtype: torch.dtype | None = None
    average: MovingAverage | None = None

    def __post_init__(self) -> None:
        """Wrap the model for data parallelism, give it a reproducible sampler, and make the scaler."""
        self.device = next(self.model.parameters()).device
        self._sampler = SeededSampler()
        set_sampler(self.model, self._sampler)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self._parallel: nn.Module = self.model
        if self.worker.world_size > 1:
            gpus = [self.device.index] if self.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.model, device_ids=gpus)

    def step(self, iteration: int, batch: Batch) -> dict[str, Tensor]:
        """Train on this worker's images; returns the losses by name, detached, of this worker.

        Raises:
            ValueError: the images cannot be shared evenly among the parts.
            FloatingPointError: the model's predictions are not finite.
        """
        if len(batch) % self.parts or not batch:
            raise ValueError(f"{len(batch)} images cannot be trained on in {self.parts} parts")
        self.model.train()
        self.model.set_iteration(iteration)  # type: ignore[operator]
        set_learning_rate(self.optimizer, self.schedule(iteration))
        self.optimizer.zero_grad(set_to_none=True)
        try:
            losses = self._differentiate(iteration, batch)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}, at iteration {iteration}") from error
        self._update()
        return losses

    def _differentiate(self, iteration: int, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradients of the whole batch in the parameters."""
        total: dict[str, Tensor] = {}
        size = len(batch) // self.parts
        for start in range(0, len(batch), size):
            self._sampler.begin(self._seeds(iteration, len(batch), start, size), self.device)
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

    def _update(self) -> None:
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()

    def _accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Workers exchange gradients in the last part alone."""
        if isinstance(self._parallel, DistributedDataParallel) and not last:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _seeds(self, iteration: int, images: int, start: int, count: int) -> list[int]:
        """One for each image, by its place in the batch of all workers."""
        first = self.worker.rank * images + start
        return [_hash(self.seed, iteration, first + i) for i in range(count)]


def _hash(*values: int) -> int:
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> 1)
