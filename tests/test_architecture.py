"""The arrows of the house: each layer imports only downward, and no file outgrows a reader."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "ifr.solvers",
    "ifr.equilibrium",
    "ifr.refine",
    "ifr.mask_head",
    "ifr.whole_file",
    "ifr.checkpoints",
    "ifr.hosts",
    "ifr.visualize",
    "ifr.experiment",
    "ifr.cli",
    "ifr.__main__",
)
METHOD = LAYERS[:4]
MOST_LINES = 400


def sources() -> list[Path]:
    """Every Python file of the repository."""
    folders = [ROOT / name for name in ("ifr", "tests", "benchmarks")]
    experiments = [path.parent for path in ROOT.glob("*/net.py")]
    assert experiments
    return sorted({ROOT / "setup.py", *(path for folder in folders + experiments for path in folder.rglob("*.py"))})


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                assert alias.name != "*", f"{path}: star import"
                yield f"{node.module}.{alias.name}"


def layer_of(name: str) -> int | None:
    for rank, layer in enumerate(LAYERS):
        if name == layer or name.startswith(f"{layer}."):
            return rank
    return None


def package_files() -> list[Path]:
    return [path for path in sources() if module_name(path).split(".")[0] == "ifr" and module_name(path) != "ifr"]


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(module_name(path))
    assert own is not None, f"{path} belongs to no layer"
    for name in imports(path):
        other = layer_of(name)
        if name.split(".")[0] == "ifr" and name != "ifr.__version__":
            assert other is not None, f"{path} imports {name}"
            assert other <= own, f"{path} imports {name}, which is above it"


def test_the_package_itself_imports_nothing_at_once() -> None:
    """`import ifr` costs nothing: what it offers comes on first use."""
    top = ast.parse((ROOT / "ifr/__init__.py").read_text()).body
    found = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert found <= {"typing"}


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_the_method_imports_torch_and_nothing_else(path: Path) -> None:
    if (layer_of(module_name(path)) or 0) >= len(METHOD):
        return
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - sys.stdlib_module_names <= {"torch", "ifr"}


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_files_are_short_and_leave_the_import_path_alone(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert "sys.path" not in set(imports(path)), f"{path}: sys.path"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path"), f"{path}: sys.path"
