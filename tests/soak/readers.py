"""Starts a guarded process that reads hostile files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

READER = Path(__file__).with_name("read_weights.py")
ROOT = READER.parents[2]


def guarded(scratch: Path, *arguments: str | Path) -> dict[str, Any]:
    """What came of reading files in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "faulthandler", READER, scratch, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    assert done.returncode == 0, f"the interpreter ended with {done.returncode}: {done.stderr[-3000:]}"
    return json.loads((scratch / "result.json").read_text())
