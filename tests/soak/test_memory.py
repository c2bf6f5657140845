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
    assert summary["calls"] == 2000
    # MB per thousand; a batch that was kept each time would be 50, a picture 20, its detections 35.
    assert summary["slope"] < 5
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file that is just being read
    fewest, most = summary["tensors"]
    assert most - fewest <= 25  # losses of up to 20 iterations wait for the next line of the log
