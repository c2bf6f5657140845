"""The floors of the house: each file imports only from its own floor or a lower one, and stays short."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom; see docs/design.md. What shares a floor may import each other, except hosts.
FLOORS = (
    ("ifr.solvers",),
    ("ifr.block", "ifr.groups", "ifr.equilibrium", "ifr.contraction"),
    ("ifr.cuda_graphs", "ifr.refine"),
    ("ifr.mask_head",),
    ("ifr.errors", "ifr.whole_file"),
    ("ifr.processes",),
    ("ifr.data", "ifr.checkpoints"),
    ("ifr.fonts", "ifr.visualize"),
    ("ifr.experiment", "ifr.description", "ifr.overrides"),
    ("ifr.runs",),
    ("ifr.hosts.heads", "ifr.hosts.settings", "ifr.hosts.recipes", "ifr.hosts.stand_in"),
    ("ifr.hosts.standalone", "ifr.hosts.cvpods", "ifr.hosts.detectron2", "ifr.hosts.torchvision", "ifr.hosts.mmdet"),
    ("ifr.hosts",),
    ("ifr.prediction", "ifr.training"),
    ("ifr.cli", "ifr.__main__"),
)
METHOD = 4  # floors
MOST_LINES = 300
MOST_OF_THE_LINES = 0.4  # in one room


def sources() -> list[Path]:
    """Every Python file of the repository."""
    folders = [ROOT / name for name in ("ifr", "tests", "benchmarks", "examples")]
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


def floor_of(name: str) -> int | None:
    """The floor of the longest room name that the module lies in."""
    found = [
        (len(room), floor)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if name == room or name.startswith(f"{room}.")
    ]
    return max(found)[1] if found else None


def package_files() -> list[Path]:
    return [path for path in sources() if module_name(path).split(".")[0] == "ifr" and module_name(path) != "ifr"]


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = floor_of(module_name(path))
    assert own is not None, f"{path} belongs to no floor"
    for name in imports(path):
        if name.split(".")[0] == "ifr" and name != "ifr.__version__":
            other = floor_of(name)
            assert other is not None, f"{path} imports {name}"
            assert other <= own, f"{path} imports {name}, which is above it"


def hosts() -> list[str]:
    folder = ROOT / "ifr/hosts"
    return [path.name for path in folder.iterdir() if path.is_dir() and (path / "__init__.py").exists()]


@pytest.mark.parametrize("host", hosts())
def test_no_host_imports_another(host: str) -> None:
    others = {f"ifr.hosts.{other}" for other in hosts() if other != host}
    assert others
    for path in (ROOT / "ifr/hosts" / host).rglob("*.py"):
        for name in imports(path):
            assert ".".join(name.split(".")[:3]) not in others, f"{path} imports {name}"


def test_the_package_itself_imports_nothing_at_once() -> None:
    """`import ifr` costs nothing: what it offers comes on first use."""
    top = ast.parse((ROOT / "ifr/__init__.py").read_text()).body
    found = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert found <= {"typing"}


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_the_method_imports_torch_and_nothing_else(path: Path) -> None:
    if (floor_of(module_name(path)) or 0) >= METHOD:
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


def test_no_room_holds_most_of_the_house() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in package_files()}
    for rooms in FLOORS:
        for room in rooms:
            own = sum(count for path, count in lines.items() if f"{module_name(path)}.".startswith(f"{room}."))
            if room != "ifr.hosts":  # the floor above its hosts, which are rooms of their own
                assert own <= MOST_OF_THE_LINES * sum(lines.values()), room
