"""Stochastic gradient descent configured like cvpods, gradient clipping, and the learning rate schedule."""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MASK_HEAD = "roi_heads.mask_head"  # in `RCNN`
Clip = Callable[[Iterable[nn.Parameter]], None]

_NOT_FUSED = ("mps",)  # types of device whose fused SGD ignores `found_inf`, see github.com/pytorch/pytorch/pull/186360
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(config: Any, model: nn.Module) -> torch.optim.SGD:
    """Build SGD with momentum and weight decay; normalisation layers use WEIGHT_DECAY_NORM.

    The learning rate of the mask head is multiplied by MASK_HEAD_LR_FACTOR, and that of biases by BIAS_LR_FACTOR.

    Both magnitude and direction of a weight-normalised convolution decay: neither belongs to a normalisation layer.
    The fused implementation can skip a non-finite update on the device itself, but not on MPS.

    Raises:
        ValueError: SOLVER.OPTIMIZER.NAME is not supported, or the model has no trainable parameters.
    """
    settings = config.SOLVER.OPTIMIZER
    if settings.NAME not in ("D2SGD", "SGD"):
        raise ValueError(f"SOLVER.OPTIMIZER.NAME must be 'D2SGD', got {settings.NAME!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        head = float(settings.MASK_HEAD_LR_FACTOR) if path.startswith(_MASK_HEAD) else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                norm = isinstance(module, _NORMS)
                decay = settings.WEIGHT_DECAY_NORM if norm else settings.WEIGHT_DECAY
                factor = settings.BIAS_LR_FACTOR if name == "bias" and not norm else 1.0
                groups.setdefault((head * float(factor), float(decay)), []).append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    momentum = float(settings.MOMENTUM)
    optimizer = torch.optim.SGD(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=float(settings.BASE_LR),
        momentum=momentum,
        fused=next(model.parameters()).device.type not in _NOT_FUSED,
    )
    if momentum:  # torch 2.14 leaves it uninitialised if the first update is skipped
        for parameter in itertools.chain.from_iterable(groups.values()):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of a saved optimizer, fused or not, but keep this run's settings.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate to `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def build_clip(config: Any) -> Clip | None:
    """Build the function that clips gradients as SOLVER.CLIP_GRADIENTS says; None if disabled.

    Raises:
        ValueError: CLIP_TYPE is unknown.
    """
    settings = config.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED:
        return None
    limit, order = float(settings.CLIP_VALUE), float(settings.NORM_TYPE)

    def by_value(parameters: Iterable[nn.Parameter]) -> None:
        nn.utils.clip_grad_value_(parameters, limit)

    def by_norm(parameters: Iterable[nn.Parameter]) -> None:
        _norm: Tensor = nn.utils.clip_grad_norm_(parameters, limit, order)

    if settings.CLIP_TYPE == "value":
        return by_value
    if settings.CLIP_TYPE == "norm":
        return by_norm
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be 'value' or 'norm', got {settings.CLIP_TYPE!r}")


_WARMUPS = ("linear", "constant")


@dataclass(frozen=True)
class WarmupMultiStep:
    """A learning rate with a warm-up to `base`, multiplied by `gamma` at each of `steps`.

    Args:
        base: learning rate after the warm-up.
        steps: iterations at which the rate drops, ascending.
        gamma: factor applied at each step.
        warmup_iterations: length of the warm-up.
        warmup_factor: initial rate as a fraction of `base`.
        warmup_method: "linear" interpolates from the initial rate to `base`; "constant" keeps the initial rate.

    Raises:
        ValueError: the steps are not ascending, or the warm-up method is unknown.
    """

    base: float
    steps: Sequence[int]
    gamma: float = 0.1
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001
    warmup_method: str = "linear"

    def __post_init__(self) -> None:
        """Check the settings."""
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"SOLVER.LR_SCHEDULER.STEPS must be ascending, got {list(self.steps)}")
        if self.warmup_method not in _WARMUPS:
            raise ValueError(f"SOLVER.LR_SCHEDULER.WARMUP_METHOD must be one of {_WARMUPS}, got {self.warmup_method!r}")

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of this iteration, counted from 0."""
        return self.base * self._warmup(iteration) * self.gamma ** bisect_right(self.steps, iteration)

    def _warmup(self, iteration: int) -> float:
        if iteration >= self.warmup_iterations:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = iteration / self.warmup_iterations
        return self.warmup_factor * (1 - progress) + progress


def build_schedule(config: Any) -> WarmupMultiStep:
    """Build the schedule that SOLVER.LR_SCHEDULER describes.

    Raises:
        ValueError: the steps are not ascending, or the warm-up method is unknown.
    """
    settings = config.SOLVER.LR_SCHEDULER
    return WarmupMultiStep(
        base=float(config.SOLVER.OPTIMIZER.BASE_LR),
        steps=tuple(settings.STEPS),
        gamma=float(settings.GAMMA),
        warmup_iterations=int(settings.WARMUP_ITERS),
        warmup_factor=float(settings.WARMUP_FACTOR),
        warmup_method=str(settings.WARMUP_METHOD),
    )
