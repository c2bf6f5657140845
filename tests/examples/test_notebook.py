"""The notebook as a user runs it, on a copy so that it writes nothing here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_data.ipynb"


def test_the_notebook_trains_loads_predicts_and_plots(tmp_path: Path) -> None:
    for package in ("nbconvert", "ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    shutil.copy(NOTEBOOK, tmp_path)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", NOTEBOOK.name]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of `!ifr`
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / NOTEBOOK.name).read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "no problems found" in printed
    assert "iteration 20/20" in printed
    assert "Result(" in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2  # the detections and the curves


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
