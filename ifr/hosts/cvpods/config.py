"""cvpods' config class with the keys that IFR adds."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ifr.errors import ConfigError
from ifr.hosts.cvpods.framework import Config
from ifr.hosts.settings import ADDED


class RCNNFPNConfig(Config):  # type: ignore[misc]  # cvpods is untyped
    """Settings of a two-stage detector with a feature pyramid; the base class of experiment configs."""

    def __init__(self, d: Any = None, **kwargs: Any) -> None:
        """Set cvpods' defaults and the keys that IFR adds."""
        super().__init__(d, **kwargs)
        self._register_configuration(copy.deepcopy(ADDED))

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as nested dicts and lists."""
        plain: dict[str, Any] = _plain(dict(self))
        return plain

    def merge_from_list(self, overrides: Sequence[Any]) -> None:
        """Override settings from `["KEY.SUBKEY", value, ...]`, like cvpods.

        Raises:
            ConfigError: a key has no value or does not exist, or a value does not fit the type of its setting.
        """
        pairs = list(overrides)
        for position in range(0, len(pairs) - 1, 2):
            if pairs[position] in ("DATASETS.TRAIN", "DATASETS.TEST") and _is_one_name(pairs[position + 1]):
                pairs[position + 1] = (pairs[position + 1],)
        try:
            super().merge_from_list(pairs)
        except (AssertionError, ValueError, TypeError) as error:
            raise ConfigError(str(error) or f"a value does not fit its setting: {overrides}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_one_name(value: Any) -> bool:
    """Whether the value of DATASETS.TRAIN or TEST is a single name, which cvpods would split into letters."""
    return isinstance(value, str) and not value.lstrip().startswith(("(", "["))
