"""The documentation names settings, files and headings that exist."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ifr.cli.settings import described
from ifr.hosts import settings
from ifr.hosts.standalone.defaults import DEFAULTS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SETTINGS = ROOT / "docs" / "settings.md"


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


# The settings that IFR adds to those of every host, and to those of its own.
ADDED = {
    *leaves(settings.ADDED),
    "DATASETS.CROWDS_AS_OBJECTS",
    "INPUT.INTENSITY.BOUNDS",
    "INPUT.INTENSITY.PERCENTILES",
    "INPUT.RESIZE",
    "SOLVER.CHECKPOINTS_KEPT",
    "SOLVER.CHECKPOINT_FAILURE",
    "SOLVER.OPTIMIZER.BETAS",
    "SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR",
    "TRAINER.CONVERGENCE.FACTOR",
    "TRAINER.CONVERGENCE.WINDOW",
    "TRAINER.TF32",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def default(key: str) -> Any:
    value: Any = DEFAULTS
    for part in key.split("."):
        value = value[part]
    return value


def rows(text: str) -> dict[str, str]:
    """Key and default of each row of the tables of settings."""
    return dict(re.findall(r"^\| `([A-Z]\w*(?:\.\w+)*)` \| (.+?) \| .+ \|$", text, re.M))


def anchors(page: Path) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub and Zensical make them."""
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def code(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def test_the_page_of_settings_has_every_added_one() -> None:
    section = SETTINGS.read_text().partition("## Added by IFR")[2].partition("\n## ")[0]
    assert set(rows(section)) == ADDED


def test_defaults_are_those_of_the_code() -> None:
    table = rows(SETTINGS.read_text().partition("## Environment variables")[0])
    assert len(table) > len(ADDED)
    written = {key: text for key, text in table.items() if text != "see below"}
    assert written == {key: f"`{default(key)!r}`" for key in written}


def test_every_setting_is_described_or_has_only_its_default() -> None:
    assert [key for key, (_, meaning) in described().items() if not meaning] == []


@each_page
def test_settings_exist(page: Path) -> None:
    sections = "|".join(key for key, value in DEFAULTS.items() if isinstance(value, dict))
    for key in re.findall(rf"\b(?:{sections})(?:\.[A-Z][A-Z0-9_]*)+", page.read_text()):
        default(key)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in set(anchors(file)), target


@each_page
def test_python_examples_parse(page: Path) -> None:
    for example in code(page):
        ast.parse(example)


def test_paths_exist() -> None:
    """Those of the present code; CHANGELOG also names old ones."""
    missing = set()
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in re.findall(r"`((?:ifr|tests|benchmarks|scripts|docs)/[\w./-]+)", page.read_text()):
            if name.isascii() and not re.search(r"[A-Z]{4}", name) and not (ROOT / name.rstrip(".")).exists():
                missing.add(f"{page.name}: {name}")
    assert not missing


def exported_by(module: str) -> set[str]:
    """The names in a module; those of `__all__` if it needs a framework that not every environment has."""
    if module in ("ifr.hosts.detectron2", "ifr.hosts.mmdet"):
        tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text())
        return {name for node in tree.body if isinstance(node, ast.Assign) for name in ast.literal_eval(node.value)}
    return set(dir(importlib.import_module(module)))


def test_modules_of_examples_exist() -> None:
    for page in PAGES:
        for example in code(page):
            for node in ast.walk(ast.parse(example)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ifr"):
                    exported = exported_by(node.module or "")
                    for alias in node.names:
                        assert alias.name in exported, f"{page.name}: {node.module}.{alias.name}"
