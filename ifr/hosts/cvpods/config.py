"""cvpods' own configuration with the keys that IFR adds."""

import copy
from collections.abc import Sequence
from typing import Any

from ifr.hosts.cvpods.framework import Config
from ifr.hosts.standalone.config import ConfigError
from ifr.hosts.standalone.defaults import DEFAULTS

_ADDED = (
    "MODEL.ROI_MASK_HEAD.REFINEMENT",
    "MODEL.ROI_MASK_HEAD.SOLVER",
    "MODEL.ROI_MASK_HEAD.ADJOINT_SOLVER",
    "MODEL.ROI_MASK_HEAD.F_THRES",
    "MODEL.ROI_MASK_HEAD.B_THRES",
    "MODEL.ROI_MASK_HEAD.F_TOL",
    "MODEL.ROI_MASK_HEAD.B_TOL",
    "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS",
    "SOLVER.RESCALE",
    "SOLVER.EMA",
)


class RCNNFPNConfig(Config):  # type: ignore[misc]  # whatever cvpods has
    """Settings of a two-stage detector with a feature pyramid; an experiment's class derives from it."""

    def __init__(self, d: Any = None, **kwargs: Any) -> None:
        """Start from cvpods' defaults and the keys that IFR adds."""
        super().__init__(d, **kwargs)
        self._register_configuration(_added())

    def merge_from_list(self, overrides: Sequence[Any]) -> None:
        """Overwrite settings from `["KEY.SUBKEY", value, ...]`, as cvpods does.

        Raises:
            ConfigError: a key has no value, does not exist, or its value does not fit the type of the old one.
        """
        pairs = list(overrides)
        for position in range(0, len(pairs) - 1, 2):
            if pairs[position] in ("DATASETS.TRAIN", "DATASETS.TEST") and _is_one_name(pairs[position + 1]):
                pairs[position + 1] = (pairs[position + 1],)
        try:
            super().merge_from_list(pairs)
        except (AssertionError, ValueError, TypeError) as error:
            raise ConfigError(str(error) or f"a value does not fit its setting: {overrides}") from error


def _is_one_name(value: Any) -> bool:
    """Whether the value of a list of data sets is a single one, which cvpods would take for a list of letters."""
    return isinstance(value, str) and not value.lstrip().startswith(("(", "["))


def _added() -> dict[str, Any]:
    """IFR's keys with their default values, nested."""
    tree: dict[str, Any] = {}
    for key in _ADDED:
        value: Any = DEFAULTS
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            value, node = value[section], node.setdefault(section, {})
        node[name] = copy.deepcopy(value[name])
    return tree
