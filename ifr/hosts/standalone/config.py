"""Configuration with cvpods' structure and key names, backed by OmegaConf in struct mode."""

import ast
import copy
import difflib
import functools
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ifr.errors import ConfigError
from ifr.hosts.standalone.defaults import DEFAULTS

# Raised by ast.literal_eval for text that is not a literal; the last two for thousands of brackets.
_LITERAL_ERRORS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


class RCNNFPNConfig:
    """Settings of a two-stage detector with a feature pyramid, the base class of an experiment's settings.

    Settings are attributes, for example `config.MODEL.MASK_ON`. Reading or setting an unknown key is an error.
    """

    def __init__(self) -> None:
        """Load cvpods' defaults and the settings that IFR adds."""
        tree = OmegaConf.create(copy.deepcopy(DEFAULTS))
        OmegaConf.set_struct(tree, True)
        object.__setattr__(self, "_tree", tree)

    def _register_configuration(self, settings: Mapping[str, Any]) -> None:
        """Overwrite the keys in the nested `settings`; all others keep their values.

        Raises:
            ConfigError: a key does not exist, a value has the wrong type, or a string contains `${`.
        """
        _check_keys(self._tree, settings, prefix="")
        _check_plain(settings)
        typed = _converted(settings, DEFAULTS)
        object.__setattr__(self, "_tree", OmegaConf.merge(self._tree, OmegaConf.create(typed)))

    def merge_from_list(self, overrides: Sequence[Any]) -> None:
        """Overwrite settings from `["KEY.SUBKEY", value, ...]`; strings are parsed as Python literals, not evaluated.

        Raises:
            ConfigError: a key does not exist or has no value, or a value has the wrong type or contains `${`.
        """
        if len(overrides) % 2:
            raise ConfigError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} has no value")
        for key, text in zip(overrides[0::2], overrides[1::2], strict=True):
            old = self._lookup(str(key))
            value = _parsed(text, old, key=str(key))
            _check_plain({str(key): value})
            if isinstance(old, DictConfig):
                _check_keys(old, value, prefix=f"{key}.")
            value = _converted(value, functools.reduce(operator.getitem, str(key).split("."), DEFAULTS), str(key))
            OmegaConf.update(self._tree, str(key), value, merge=isinstance(old, DictConfig))

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as nested dicts and lists."""
        plain = OmegaConf.to_container(self._tree)
        return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}

    def as_yaml(self) -> str:
        """Return all settings as YAML."""
        return OmegaConf.to_yaml(self._tree)

    def _lookup(self, key: str) -> Any:
        node: Any = self._tree
        for part in key.split("."):
            if not isinstance(node, DictConfig) or part not in node:
                raise ConfigError(_unknown(key, _leaves(self._tree)))
            node = node[part]
        return node

    def __getattr__(self, name: str) -> Any:
        """Return a section or a top-level setting."""
        if name.startswith("_") or name not in self._tree:
            raise AttributeError(_unknown(name, list(self.__dict__.get("_tree", ()))))
        return self._tree[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Overwrite a top-level setting."""
        self._register_configuration({name: value})

    def __repr__(self) -> str:
        """Return the settings as YAML."""
        return f"{type(self).__name__}\n{self.as_yaml()}"


def _plain(value: Any) -> Any:
    """Convert mappings to dicts and sequences to lists, the types that OmegaConf holds."""
    if isinstance(value, Mapping | DictConfig):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | ListConfig):
        return [_plain(item) for item in value]
    return value


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield f"{prefix}{key!s}"
        if isinstance(node[key], DictConfig):
            yield from _leaves(node[key], f"{prefix}{key!s}.")


def _unknown(key: str, valid: Any) -> str:
    last = {name: name.rsplit(".", 1)[-1] for name in valid}
    # A key in the wrong section is more likely than one that is all wrong: SOLVER.MAX_ITER is
    # SOLVER.LR_SCHEDULER.MAX_ITER, and so is SOLVER.MAX_ITR.
    alike = difflib.get_close_matches(key.rsplit(".", 1)[-1], dict.fromkeys(last.values()), n=1, cutoff=0.75)
    same_name = [name for name in last if last[name] in alike]
    near = difflib.get_close_matches(key, same_name, n=1, cutoff=0.0) or difflib.get_close_matches(key, last, 1, 0.4)
    return f"there is no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _check_keys(node: DictConfig, settings: Any, prefix: str) -> None:
    if not isinstance(settings, Mapping | DictConfig):
        raise ConfigError(f"{prefix.rstrip('.')} is a section; it takes a dict, got {settings!r}")
    for key, value in settings.items():
        if key not in node:
            raise ConfigError(_unknown(f"{prefix}{key}", _leaves(node, prefix)))
        if isinstance(node[key], DictConfig):
            _check_keys(node[key], value, prefix=f"{prefix}{key}.")


def _check_plain(value: Any, prefix: str = "") -> None:
    """Refuse `${...}`, which OmegaConf would resolve from other settings or the environment."""
    if isinstance(value, Mapping | DictConfig):
        for key, item in value.items():
            _check_plain(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple | ListConfig):
        for item in value:
            _check_plain(item, prefix)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"{prefix} must not contain ${{...}}, which is never evaluated; got {value!r}")


def _parsed(text: Any, old: Any, key: str) -> Any:
    """Parse `text`, unless it is for a string."""
    value = text
    if isinstance(text, str):
        try:
            value = ast.literal_eval(text)
        except _LITERAL_ERRORS:
            value = text  # an unquoted string, such as a path
    if isinstance(old, str) and isinstance(text, str) and text.lstrip().startswith("{"):
        raise ConfigError(f"{key} must be of type str, such as {old!r}; got {text!r}")
    if isinstance(old, str) and isinstance(text, str) and not isinstance(value, str) and value is not None:
        return text  # a string that looks like a number
    return value


def _converted(value: Any, default: Any, key: str = "") -> Any:
    """Convert a value, or all values of a section, to the types of the defaults."""
    if isinstance(default, Mapping) and isinstance(value, Mapping | DictConfig):
        return {
            str(name): _converted(item, default[name], f"{key}.{name}" if key else str(name))
            for name, item in value.items()
        }
    if isinstance(value, str) and key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        value = [value]  # a single data set
    value = os.fspath(value) if isinstance(value, os.PathLike) else _plain(value)
    default = list(default) if isinstance(default, tuple) else default
    if default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, bool) and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, int) and isinstance(value, float) and value.is_integer() and not isinstance(default, bool):
        return int(value)
    hint = "" if isinstance(default, Mapping) or default == [] else f", such as {default!r}"
    raise ConfigError(f"{key} must be of type {type(default).__name__}{hint}; got {value!r}")
