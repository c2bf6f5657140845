"""The short form of tests/soak/test_memory.py: nothing is kept from one iteration or picture to the next."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["train", "predict"])
def test_no_tensor_and_no_file_is_kept(tiny: Path, tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/soak/memory.py"), what, str(tiny), str(tmp_path / "output"), "60"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file that is just being read
    fewest, most = summary["tensors"]
    assert most - fewest <= 25  # losses of up to 20 iterations wait for the next line of the log
    assert summary["last"] - summary["after_first"] < 20  # MB; so few iterations say nothing finer
