"""Memory and open files of long runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_experiment import write_tiny

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("what", ["train", "predict"])
def test_two_thousand_times(tmp_path: Path, what: str) -> None:
    experiment = write_tiny(tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/soak/memory.py"), what, str(experiment), str(tmp_path / "output"), "2000"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    summary = json.loads(done.stdout)
    assert summary["calls"] >= 2000
    # A batch is 50 kB, its annotations and losses less, a picture 20 kB, the weights 45 MB. The allocator keeps and
    # returns blocks of tens of MB as regions come and go.
    assert summary["slope"] < 5  # MB per thousand
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file that is just being read
    fewest, most = summary["tensors"]
    assert most - fewest <= 100  # losses of up to 20 iterations wait for the next line of the log
