"""`ifr settings`: lists settings with their defaults and meanings, from the tables of docs/settings.md."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifr.errors import UserError
from ifr.hosts.standalone.defaults import DEFAULTS
from ifr.hosts.standalone.supported import UNSUPPORTED
from ifr.overrides import leaves

# In a wheel setup.py has copied the page into the package.
_PAGES = (Path(__file__).parents[1] / "settings.md", Path(__file__).parents[2] / "docs" / "settings.md")
_ROW = re.compile(r"^\| `([A-Z]\w*(?:\.\w+)*)` \| .+? \| (.+) \|$", re.M)
_KEPT = "a setting of cvpods; this host has only the default"


def settings(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr settings`.

    Raises:
        UserError: no setting contains the pattern.
    """
    if overrides:
        raise UserError(f"unexpected argument {overrides[0]!r}", "see ifr settings --help")
    wanted = args.pattern.lower()
    rows = [
        (key, repr(default), meaning)
        for key, (default, meaning) in described().items()
        if wanted in key.lower() or wanted in meaning.lower()
    ]
    if not rows:
        raise UserError(f"no setting contains {args.pattern!r}", "`ifr settings` lists all")
    for key, default, meaning in rows:
        sys.stdout.write(f"{key} = {default}\n    {meaning}\n")


def described() -> dict[str, tuple[Any, str]]:
    """Return the default and the meaning of every setting."""
    page = next(path for path in _PAGES if path.is_file()).read_text()
    meanings = {key: re.sub(r"`|\[([^]]*)\]\([^)]*\)", r"\1", text) for key, text in _ROW.findall(page)}
    return {key: (default, meanings.get(key) or (_KEPT if _is_kept(key) else "")) for key, default in leaves(DEFAULTS)}


def _is_kept(key: str) -> bool:
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in UNSUPPORTED)
