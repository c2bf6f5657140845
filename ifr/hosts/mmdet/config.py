"""The settings of the mask head in a config of mmdetection."""

import difflib
import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ifr.errors import ConfigError
from ifr.hosts.settings import ADDED

PLUGIN = "ifr.hosts.mmdet"
_DEFAULTS = {**ADDED["MODEL"]["ROI_MASK_HEAD"], "REFINEMENT": "implicit"}
_REPLACED = {"FCNMaskHead": "IFRMaskHead", "HTCMaskHead": "IFRHTCMaskHead"}
# What IFR's heads take from the config of the head that they replace.
_KEPT = (
    "num_convs",
    "roi_feat_size",
    "in_channels",
    "conv_out_channels",
    "num_classes",
    "class_agnostic",
    "loss_mask",
    "with_conv_res",
)

logger = logging.getLogger(__name__)


def use_ifr(config: Any, **settings: Any) -> Any:
    """Give the detector of a config IFR's mask head, with these settings; also in every stage of a cascade.

    Args:
        config: a config of mmdetection, changed in place, whose mask heads are `FCNMaskHead` or `HTCMaskHead`.
        settings: those of MODEL.ROI_MASK_HEAD in lower case, such as `solver="broyden"`.

    Returns:
        The config. Its `dump(path)` writes a file for mmdetection's own tools.

    Raises:
        ConfigError: a setting is unknown, or the model has no mask head that IFR can replace.
    """
    check_names(settings)
    roi_head = config.model.get("roi_head") or {}
    given = roi_head.get("mask_head")
    if given is None:
        raise ConfigError("model.roi_head.mask_head is not in this config", "choose a config with masks")
    if isinstance(given, dict):
        roi_head["mask_head"] = _replaced(given, settings)
    else:
        roi_head["mask_head"] = [_replaced(head, settings) for head in given]
    imports = config.get("custom_imports") or {}
    others = [name for name in imports.get("imports") or () if name != PLUGIN]
    config["custom_imports"] = {**imports, "imports": [*others, PLUGIN]}
    hooks = [hook for hook in config.get("custom_hooks") or () if hook["type"] != "IFRHook"]
    config["custom_hooks"] = [*hooks, {"type": "IFRHook"}]
    return config


def check_names(settings: Iterable[str]) -> None:
    """Check the names of the settings of a mask head.

    Raises:
        ConfigError: one is unknown.
    """
    known = [name.lower() for name in _DEFAULTS]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"IFR's mask head has no setting {name!r}{hint}", f"its settings are {', '.join(known)}")


def full_settings(settings: dict[str, Any], **of_the_host: Any) -> Any:
    """Return the settings in the form that `ifr.hosts.heads` reads.

    Args:
        settings: those of MODEL.ROI_MASK_HEAD in lower case; the others have their defaults, refinement "implicit".
        of_the_host: `num_classes`, and what mmdetection names differently: NUM_CONV, CONV_DIM, CLS_AGNOSTIC_MASK.

    Raises:
        ConfigError: a setting is unknown.
    """
    check_names(settings)
    classes = of_the_host.pop("num_classes")
    head = {**_DEFAULTS, **{name.upper(): value for name, value in settings.items()}, **of_the_host}
    parts = {"ROI_MASK_HEAD": SimpleNamespace(**head), "ROI_HEADS": SimpleNamespace(NUM_CLASSES=classes)}
    return SimpleNamespace(MODEL=SimpleNamespace(MASK_ON=True, **parts))


def _replaced(head: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config of IFR's head in the place of a head of mmdetection, or of IFR with other settings."""
    kind = str(head["type"]).rpartition(".")[-1]
    if kind in _REPLACED.values():
        return {**head, **settings}
    if kind not in _REPLACED:
        raise ConfigError(
            f"model.roi_head.mask_head is {kind!r}", f"IFR replaces {' and '.join(_REPLACED)}; choose such a config"
        )
    dropped = sorted(head.keys() - {"type", *_KEPT})
    if dropped:
        logger.warning("model.roi_head.mask_head.%s: IFR's head has no such part; left out", ", ".join(dropped))
    return {"type": _REPLACED[kind], **{name: head[name] for name in _KEPT if name in head}, **settings}
