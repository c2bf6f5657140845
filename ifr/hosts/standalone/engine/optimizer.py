"""The optimizer, SGD configured like cvpods or AdamW, and gradient clipping."""

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_MASK_HEAD = "roi_heads.mask_head"  # in `RCNN`
Clip = Callable[[Iterable[nn.Parameter]], None]

_NOT_FUSED = (
    "mps",
)  # types of device whose fused optimizers ignore `found_inf`, see github.com/pytorch/pytorch/pull/186360
_USUAL_ADAMW = 0.002  # the highest usual learning rate; SGD's is about 100 times that of AdamW
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD with momentum, or AdamW, with weight decay; normalisation layers use WEIGHT_DECAY_NORM.

    The learning rate of the mask head is multiplied by MASK_HEAD_LR_FACTOR, and that of biases by BIAS_LR_FACTOR.

    Both magnitude and direction of a weight-normalised convolution decay: neither belongs to a normalisation layer.
    The fused implementation can skip a non-finite update on the device itself, but not on MPS.

    Raises:
        ValueError: SOLVER.OPTIMIZER.NAME is not supported, or the model has no trainable parameters.
    """
    settings = config.SOLVER.OPTIMIZER
    if settings.NAME not in ("D2SGD", "SGD", "AdamW"):
        raise ValueError(f"SOLVER.OPTIMIZER.NAME must be 'D2SGD' or 'AdamW', got {settings.NAME!r}")
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
    described = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
    rate, fused = float(settings.BASE_LR), next(model.parameters()).device.type not in _NOT_FUSED
    if settings.NAME == "AdamW":
        return _adamw(described, rate, settings, fused=fused)
    momentum = float(settings.MOMENTUM)
    optimizer = torch.optim.SGD(described, lr=rate, momentum=momentum, fused=fused)
    if momentum:  # torch 2.14 leaves it uninitialised if the first update is skipped
        for parameter in itertools.chain.from_iterable(groups.values()):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adamw(groups: list[dict[str, Any]], rate: float, settings: Any, *, fused: bool) -> torch.optim.AdamW:
    least, greatest = (float(beta) for beta in settings.BETAS)
    logger.info("AdamW with BETAS %s and %s; SOLVER.OPTIMIZER.MOMENTUM is SGD's and ignored", least, greatest)
    if rate > _USUAL_ADAMW:
        logger.warning(
            "SOLVER.OPTIMIZER.BASE_LR is %g, which suits SGD; AdamW usually needs about %g", rate, rate / 100
        )
    return torch.optim.AdamW(groups, lr=rate, betas=(least, greatest), fused=fused)


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of a saved optimizer, fused or not, but keep this run's settings.

    Raises:
        ValueError: the state belongs to other parameters, or to another kind of optimizer.
    """
    if any(("betas" in group) != ("betas" in optimizer.defaults) for group in state["param_groups"]):
        raise ValueError("it was trained with another SOLVER.OPTIMIZER.NAME")
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
