"""A moving average of a model's weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages the trainable parameters of a model: average = decay * average + (1 - decay) * parameter.

    The decay starts small, min(decay, (1 + n) / (10 + n)) at the n-th update, so that the initial weights fade.
    Buffers are not averaged.

    Args:
        model: the model.
        decay: between 0 and 1.

    Raises:
        ValueError: the decay is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA.DECAY must be between 0 and 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self._model = model
        self._average = {name: parameter.detach().clone() for name, parameter in self._followed()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [self._average[name] for name, _ in self._followed()]
        torch._foreach_lerp_(averages, [parameter.detach() for _, parameter in self._followed()], 1 - decay)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[dict[str, Tensor]]:
        """Put the average into the model while the context is open; yield the model's own parameters."""
        own = {name: parameter.detach().clone() for name, parameter in self._followed()}
        self._set(self._average)
        try:
            yield own
        finally:
            self._set(own)

    def resume(self, updates: int, own: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint: take the average from the model, and give it back its own parameters.

        Raises:
            ValueError: the parameters do not belong to the model.
        """
        if set(own) != set(self._average):
            raise ValueError("the checkpoint's moving average belongs to another model")
        self.updates = updates
        self._average = {name: parameter.detach().clone() for name, parameter in self._followed()}
        self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._followed():
            parameter.copy_(values[name])

    def _followed(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)
