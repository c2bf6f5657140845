"""Write checkpoints in the format and under the names that the published code reads."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifr.checkpoints.load import published_keys, unwrapped
from ifr.errors import CheckpointWriteError
from ifr.whole_file import whole_file

_BLOCK_KEY = re.compile(r"^(?P<head>.*\.|)repeat_block\.(?P<rest>.+)$")
_FOLDED_COPIES = ("repeat_block_copy.", "deq.func_copy.")


def save_checkpoint(path: str | Path, model: nn.Module, **extras: Any) -> None:
    """Write {"model": weights, **extras} with all tensors on the CPU; on an error `path` stays as it was.

    Args:
        path: the file, usually `.pth`; its folder is created if it does not exist.
        model: the model; its weights are stored under the names that `published_names()` returns.
        extras: `optimizer`, `scheduler` (their `state_dict()` is stored), `iteration`, or other plain data.

    Raises:
        CheckpointWriteError: the file cannot be written.
        TypeError: an extra holds something that `read_checkpoint` would refuse.
    """
    path = Path(path)
    content: dict[str, Any] = {"model": published_weights(model)}
    for name, value in extras.items():
        content[name] = _plain(value.state_dict() if hasattr(value, "state_dict") else value, name)
    try:
        with whole_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointWriteError(path, f"cannot be written ({error})") from error


def published_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict under the names on disk, with the published code's second registrations.

    It is a plain dict: torch's version metadata would make cvpods' FrozenBatchNorm2d subtract eps from the variances.
    """
    model = unwrapped(model)
    published = published_keys(model)
    weights = {published[key]: value.detach().cpu() for key, value in model.state_dict().items()}
    return {**weights, **_duplicates(weights)}


def _duplicates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the refinement block as `deq.func`, and as the two copies with its weight norm folded in.

    Weights are folded as w = g v / |v|, with the norm over (in, kh, kw) of each output channel. The weight-sharing
    variant has blocks without weight norm and registers them once.
    """
    duplicates: dict[str, Tensor] = {}
    for key, value in weights.items():
        match = _BLOCK_KEY.match(key)
        if match is None or f"{match['head']}repeat_block.conv1.weight_g" not in weights:
            continue
        head, rest = match["head"], match["rest"]
        duplicates[f"{head}deq.func.{rest}"] = value
        if rest.endswith(".weight_g"):
            continue
        if rest.endswith(".weight_v"):
            rest = rest.removesuffix("_v")
            value = _fold(weights[f"{head}repeat_block.{rest}_g"], value)
        duplicates.update({f"{head}{copy}{rest}": value for copy in _FOLDED_COPIES})
    return duplicates


def _fold(scale: Tensor, direction: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    return direction * (scale / norm.view(-1, *[1] * (direction.ndim - 1)))


def _plain(value: Any, where: str) -> Any:
    """Return `value` with its tensors on the CPU; torch.load cannot read GPU tensors on a machine without a GPU.

    Raises:
        TypeError: `value` is or holds something that `read_checkpoint` would refuse.
    """
    if isinstance(value, Tensor):
        return value.cpu()
    if type(value) in (int, float, bool, str, bytes, type(None)):
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if type(value) not in (dict, OrderedDict, Counter):  # Counter holds the milestones of MultiStepLR
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, text and containers"
        )
    for key in value:
        if type(key) not in (int, float, bool, str):
            raise TypeError(f"{where} has a key of type {type(key).__name__}; a checkpoint has numbers and text")
    return type(value)({key: _plain(entry, f"{where}.{key}") for key, entry in value.items()})
