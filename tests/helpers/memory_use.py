"""Runs tests/soak/memory.py in a process of its own, for the short and for the long test of steady memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def memory_use(what: str, experiment: Path, output: Path, calls: int, timeout: float) -> dict[str, Any]:
    """What so many iterations of "train" or calls of "predict" held, as that script sums it up; times in seconds."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/soak/memory.py"), what, str(experiment), str(output), str(calls)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
