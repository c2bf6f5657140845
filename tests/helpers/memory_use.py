"""Runs tests/soak/memory.py in a separate process, for the short and the long test of steady memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def memory_use(what: str, experiment: Path, output: Path, calls: int, timeout: float) -> dict[str, Any]:
    """Return the script's summary for `calls` iterations of "train" or calls of "predict"; `timeout` in seconds."""
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
