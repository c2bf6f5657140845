"""Load the weights of a file into a model, and report exactly what was loaded and what was not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ifr.checkpoints import names
from ifr.checkpoints.accelerators import accelerators_of
from ifr.checkpoints.fetch import resolve
from ifr.checkpoints.files import CheckpointFile, read_checkpoint
from ifr.checkpoints.origins import BACKBONE, Origin, lacking_settings
from ifr.errors import CheckpointError

logger = logging.getLogger(__name__)
_SHOWN = 8  # names in one message; the report lists all


@dataclass(frozen=True)
class LoadReport:
    """The names on disk of the weights that were loaded, missing, unknown to the model, or of another shape."""

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

    Anchors and pixel statistics follow from the settings and are never loaded; if the file's differ, this is logged.

    Args:
        model: a detector or a part of one; its `published_names()`, if it exists, maps its keys to those on disk.
        source: a file; an `https://` or `detectron2://` address, which is fetched once into the cache; or the result
            of `read_checkpoint`, which may be loaded several times.
        allow_missing: patterns (`roi_heads.mask_head.*`) of names on disk that the file may lack.
        allow_mismatched: patterns of weights that keep their initial values if the file has another shape.
        allow_backbone_only: accept a file that holds only a backbone; the rest keeps its initial values.

    Raises:
        CheckpointError: the file cannot be read, weights are missing or of another shape and not allowed to be, or its
            ResNet was trained with other settings (norm, pixels, stride), which the remedy states.
    """
    checkpoint = source if isinstance(source, CheckpointFile) else read_checkpoint(resolve(source))
    model = unwrapped(model)
    given = {names.unwrapped(key): value for key, value in checkpoint.weights.items()}
    if len(given) < len(checkpoint.weights):
        raise CheckpointError(checkpoint.path, "it holds weights whose names differ only in module. or _orig_mod.")
    with accelerators_of(model, given, checkpoint.path):
        return _load(model, given, checkpoint, allow_missing, allow_mismatched, allow_backbone_only)


def _load(
    model: nn.Module,
    given: Mapping[str, Tensor],
    checkpoint: CheckpointFile,
    allow_missing: Collection[str],
    allow_mismatched: Collection[str],
    allow_backbone_only: bool,
) -> LoadReport:
    file = checkpoint.path
    keys = published_keys(model)
    own = _own_keys(keys)
    published = {names.unwrapped(key): names.unwrapped(name) for key, name in keys.items()}
    renamed = names.to_cvpods(given, checkpoint.extras.get("__author__"))
    weights = _under_published_names(renamed.weights, own, published)
    backbone_only = names.is_backbone_only(weights)
    if backbone_only and not allow_backbone_only:
        raise CheckpointError(file, "it holds only a backbone; the weights of a whole detector are needed")
    _check_settings(lacking_settings(model, own, weights, renamed.folded, renamed.origin), file, renamed.origin)
    _unfold_statistics(weights, renamed.folded, own, model)
    weights = {key: value for key, value in weights.items() if not names.is_published_duplicate(key, weights)}
    computed = {key: weights.pop(key) for key in list(weights) if names.setting_of(key)}

    state = model.state_dict()
    mismatched = [key for key in weights if key in own and not _fits(weights[key], state[own[key]])]
    loaded = [key for key in weights if key in own and key not in set(mismatched)]
    report = LoadReport(
        loaded=tuple(sorted(loaded)),
        missing=tuple(sorted(set(own) - set(weights) - set(computed))),
        unexpected=tuple(sorted(set(weights) - set(own))),
        mismatched=tuple(sorted(mismatched)),
    )
    targets = {key: state[own[key]] for key in mismatched}
    cause, remedy = _misfit(report, weights, targets, allow_mismatched) or _lack(report, backbone_only, allow_missing)
    if cause and (prefix := names.wrong_prefix(given, own, published)):
        cause, remedy = f"{prefix}: {cause}", "rename the weights in the file, or give another MODEL.WEIGHTS"
    if cause:
        raise CheckpointError(file, cause, remedy)
    model.load_state_dict({own[key]: weights[key] for key in loaded}, strict=False)
    _log(report, file, backbone_only, renamed.origin)
    _log_computed(computed, file, model)
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
    """Return the model without the wrappers of data parallelism and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in dict(model.named_children()):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _own_keys(published: Mapping[str, str]) -> dict[str, str]:
    """Map each name on disk that the model can load to its key, leaving out second registrations."""
    taken = published.values()
    return {
        names.unwrapped(name): key for key, name in published.items() if not names.is_published_duplicate(name, taken)
    }


def _under_published_names(
    weights: dict[str, Tensor], own: Collection[str], published: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the weights under their names on disk; the file has those or the keys of the model's state dict."""
    modules = {key.rpartition(".")[0]: name.rpartition(".")[0] for key, name in published.items()}
    renamed = {}
    for key, value in weights.items():
        module, dot, leaf = key.rpartition(".")
        # A weight that the model lacks, such as the statistics of another norm, is renamed like its module.
        renamed[published.get(key, modules.get(module, module) + dot + leaf)] = value
    own_state = len(renamed.keys() & set(own)) > len(weights.keys() & set(own))
    return renamed if own_state and len(renamed) == len(weights) else weights


def _check_settings(settings: Mapping[str, str], file: Path, origin: Origin | None) -> None:
    """Refuse weights that were trained with other settings than the model's."""
    if settings:
        pairs = " ".join(f"{key} {value}" for key, value in settings.items())
        kind = f"it holds {origin.name}" if origin else "it was trained"
        raise CheckpointError(
            file,
            f"{kind} with other settings than the model's {', '.join(settings)}",
            f"add {pairs}, or give another MODEL.WEIGHTS",
        )


def _unfold_statistics(
    weights: dict[str, Tensor], folded: Collection[str], own: Mapping[str, str], model: nn.Module
) -> None:
    """Add mean 0 and variance 1 for norms whose statistics are folded into scale and shift."""
    for prefix in sorted(folded):
        if f"{prefix}running_mean" not in own:
            continue
        norm = model.get_submodule(own[f"{prefix}running_mean"].rpartition(".")[0])
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            logger.warning("%s: its statistics are folded into its scale, which suits only frozen norms", prefix[:-1])
        scale = weights[f"{prefix}weight"]
        weights[f"{prefix}running_mean"] = torch.zeros_like(scale)
        # x / sqrt(running_var + eps) is then x, as in cvpods' FrozenBatchNorm2d.
        weights[f"{prefix}running_var"] = torch.ones_like(scale) - float(getattr(norm, "eps", 0.0))


def _fits(value: Tensor, target: Tensor) -> bool:
    same_kind = value.is_floating_point() == target.is_floating_point() and value.is_complex() == target.is_complex()
    return value.shape == target.shape and same_kind


def _misfit(
    report: LoadReport, weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], allowed: Collection[str]
) -> tuple[str, str | None] | None:
    """Return cause and remedy if the file has weights that the model cannot load, else None."""
    wrong = [key for key in report.mismatched if not _matches(key, allowed)]
    if wrong:
        shapes = [f"{key} is {_shape(weights[key])}, the model has {_shape(targets[key])}" for key in wrong]
        remedy = "set MODEL.ANCHOR_GENERATOR as in its training, or give another MODEL.WEIGHTS"
        anchors = any(names.is_rpn_predictor(key) for key in wrong)
        return f"{len(wrong)} weights do not fit the model: {_some(shapes, '; ')}", remedy if anchors else None
    if not report.loaded:
        return f"none of its {len(weights)} weights belongs to the model: {_some(list(weights))}", None
    stages = {names.residual_stage(key) for key in report.loaded} - {None}
    deeper = [key for key in report.unexpected if names.residual_stage(key) in stages]
    if deeper:
        remedy = "set MODEL.RESNETS.DEPTH to that of the file, or give another MODEL.WEIGHTS"
        return f"its ResNet has {len(deeper)} weights that the model's lacks: {_some(deeper)}", remedy
    return None


def _lack(report: LoadReport, backbone_only: bool, allowed: Collection[str]) -> tuple[str, str | None]:
    """Return cause and remedy if the file lacks weights that matter, else an empty cause."""
    lacking = [
        key
        for key in report.missing
        if not names.is_computed(key)
        and not _matches(key, allowed)
        and not (backbone_only and not key.startswith(BACKBONE))
    ]
    other = f" (it has weights unknown to the model: {_some(list(report.unexpected))})" if report.unexpected else ""
    return f"it lacks {len(lacking)} weights of the model: {_some(lacking)}{other}" if lacking else "", None


def _log(report: LoadReport, file: Path, backbone_only: bool, origin: Origin | None) -> None:
    logger.info("%s: %d weights loaded", file, len(report.loaded))
    if origin is not None and origin.is_rgb:
        logger.info("%s: %s: the stem's channels are converted from RGB to BGR", file, origin.name)
    kind = " (only a backbone: the rest keeps its initial values)" if backbone_only else ""
    for what, keys in (
        ("missing from the file" + kind, [key for key in report.missing if not names.is_computed(key)]),
        ("in the file, unknown to the model", [key for key in report.unexpected if not names.is_computed(key)]),
        ("of another shape, which keep their initial values", report.mismatched),
    ):
        if keys:
            level = logging.INFO if backbone_only else logging.WARNING
            logger.log(level, "%s: %d %s: %s", file, len(keys), what, _some(list(keys)))


def _log_computed(computed: Mapping[str, Tensor], file: Path, model: nn.Module) -> None:
    """Log which values of the file differ from those that the model computed from its settings and keeps."""
    state = {names.unwrapped(key): value for key, value in (*model.state_dict().items(), *model.named_buffers())}
    differ = [key for key, value in computed.items() if key not in state or not _equal(value, state[key])]
    if differ:
        settings = sorted({str(names.setting_of(key)) for key in differ})
        text = "%s: %d values that follow from %s are not loaded; the file has others: %s"
        logger.warning(text, file, len(differ), " and ".join(settings), _some(differ))


def _equal(value: Tensor, own: Tensor) -> bool:
    """Return whether two values computed from settings agree to half precision."""
    own = own.detach().cpu().double()
    return value.shape == own.shape and torch.allclose(value.double(), own, rtol=1e-3, atol=1e-6)


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _some(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
