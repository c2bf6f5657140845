"""Put the weights of a file into a model, and say exactly what was loaded and what was not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ifr.checkpoints import names
from ifr.checkpoints.fetch import resolve
from ifr.checkpoints.files import CheckpointFile, read_checkpoint
from ifr.errors import CheckpointError

logger = logging.getLogger(__name__)
_SHOWN = 8  # names in one message; the report has them all


@dataclass(frozen=True)
class LoadReport:
    """The names, as on disk, of the weights that a load set, lacked, did not know, and found in another shape."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_weights(
    model: nn.Module,
    source: str | Path | CheckpointFile,
    *,
    allow_missing: Collection[str] = (),
    allow_mismatched: Collection[str] = (),
    allow_backbone_only: bool = True,
) -> LoadReport:
    """Load a checkpoint of any known format into a model; on an error the model is left as it was.

    Args:
        model: a detector or a part of one; `published_names()`, if it has it, maps its own keys to those on disk.
        source: a file, or an `https://` or `detectron2://` address, which is fetched once into the cache; or what
            `read_checkpoint` returned, which may be loaded several times.
        allow_missing: patterns (`roi_heads.mask_head.*`) of names on disk that the file may lack.
        allow_mismatched: patterns of names that keep their initial values where the file has another shape.
        allow_backbone_only: accept a file that holds a backbone alone, which leaves the rest as initialised.

    Raises:
        CheckpointError: the file cannot be read, or lacks or contradicts weights that matter and are not allowed for.
    """
    checkpoint = source if isinstance(source, CheckpointFile) else read_checkpoint(resolve(source))
    file = checkpoint.path
    model = unwrapped(model)
    own = _own_keys(model)
    weights = names.to_cvpods(checkpoint.weights)
    backbone_only = names.is_backbone_only(weights)
    if backbone_only and not allow_backbone_only:
        raise CheckpointError(file, "it holds a backbone alone; the weights of a whole detector are needed here")
    _unfold_statistics(weights, own, model)
    weights = {key: value for key, value in weights.items() if not names.is_published_duplicate(key, weights)}

    state = model.state_dict()
    mismatched = [key for key in weights if key in own and not _fits(weights[key], state[own[key]])]
    loaded = [key for key in weights if key in own and key not in set(mismatched)]
    report = LoadReport(
        loaded=tuple(sorted(loaded)),
        missing=tuple(sorted(set(own) - set(weights))),
        unexpected=tuple(sorted(set(weights) - set(own))),
        mismatched=tuple(sorted(mismatched)),
    )
    _check(report, file, weights, {key: state[own[key]] for key in mismatched}, allow_mismatched)
    _check_missing(report, file, backbone_only, allow_missing)
    model.load_state_dict({own[key]: weights[key] for key in loaded}, strict=False)
    _log(report, file, backbone_only)
    return report


def published_keys(model: nn.Module) -> dict[str, str]:
    """Map each key of the model's state dict to its name on disk.

    Raises:
        ValueError: two keys have the same name on disk.
    """
    rename = getattr(model, "published_names", None)
    renamed: Mapping[str, str] = rename() if callable(rename) else {}
    result = {key: renamed.get(key, key) for key in model.state_dict()}
    if len(set(result.values())) != len(result):
        raise ValueError(f"{type(model).__name__}.published_names() gives two weights the same name")
    return result


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper, or the model itself."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def _own_keys(model: nn.Module) -> dict[str, str]:
    """The names on disk that the model can take, each with its own key; second registrations are no names of its."""
    published = published_keys(model)
    return {name: key for key, name in published.items() if not names.is_published_duplicate(name, published.values())}


def _unfold_statistics(weights: dict[str, Tensor], own: Mapping[str, str], model: nn.Module) -> None:
    """Give norms whose statistics are folded into scale and shift the statistics that normalise nothing."""
    for prefix in names.folded_statistics(weights):
        if f"{prefix}running_mean" not in own:
            continue
        norm = model.get_submodule(own[f"{prefix}running_mean"].rpartition(".")[0])
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            logger.warning("%s: its statistics are folded into its scale, which suits frozen norms alone", prefix[:-1])
        scale = weights[f"{prefix}weight"]
        weights[f"{prefix}running_mean"] = torch.zeros_like(scale)
        # x / sqrt(running_var + eps) is then x, as in cvpods' FrozenBatchNorm2d.
        weights[f"{prefix}running_var"] = torch.ones_like(scale) - float(getattr(norm, "eps", 0.0))


def _fits(value: Tensor, target: Tensor) -> bool:
    same_kind = value.is_floating_point() == target.is_floating_point() and value.is_complex() == target.is_complex()
    return value.shape == target.shape and same_kind


def _check(
    report: LoadReport,
    file: Path,
    weights: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    allowed: Collection[str],
) -> None:
    wrong = [key for key in report.mismatched if not _matches(key, allowed)]
    if wrong:
        shapes = [f"{key} is {_shape(weights[key])}, the model has {_shape(targets[key])}" for key in wrong]
        raise CheckpointError(file, f"{len(wrong)} weights do not fit the model: {_some(shapes, '; ')}")
    if not report.loaded:
        raise CheckpointError(file, f"none of its {len(weights)} weights belongs to the model: {_some(list(weights))}")


def _check_missing(report: LoadReport, file: Path, backbone_only: bool, allowed: Collection[str]) -> None:
    lacking = [
        key
        for key in report.missing
        if not names.is_computed(key)
        and not _matches(key, allowed)
        and not (backbone_only and not key.startswith(names.BACKBONE))
    ]
    if lacking:
        other = f" (it has, unknown to the model: {_some(list(report.unexpected))})" if report.unexpected else ""
        raise CheckpointError(file, f"it lacks {len(lacking)} weights of the model: {_some(lacking)}{other}")


def _log(report: LoadReport, file: Path, backbone_only: bool) -> None:
    logger.info("%s: %d weights loaded", file, len(report.loaded))
    kind = " (a backbone alone: the rest keeps its initial values)" if backbone_only else ""
    for what, keys in (
        ("missing from the file" + kind, [key for key in report.missing if not names.is_computed(key)]),
        ("in the file, unknown to the model", [key for key in report.unexpected if not names.is_computed(key)]),
        ("of another shape, not loaded", report.mismatched),
    ):
        if keys:
            level = logging.INFO if backbone_only else logging.WARNING
            logger.log(level, "%s: %d %s: %s", file, len(keys), what, _some(list(keys)))


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _some(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
