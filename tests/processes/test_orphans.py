"""Workers do not outlive the command that started them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]


def runs(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("moment", ["early", "late"])
def test_a_worker_dies_with_its_command_even_while_blocked_or_starting(tmp_path, monkeypatch, moment):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, str(ROOT / "tests/helpers/orphans.py"), moment, str(tmp_path)]
    with subprocess.Popen(command) as launcher:
        wait_for((tmp_path / "pid").exists)
        worker = int((tmp_path / "pid").read_text())
        assert runs(worker)
        if moment == "early":  # a terminal sends Ctrl-C to the worker too, which must ignore it
            subprocess.run(["kill", "-INT", str(worker)], check=True)
        launcher.send_signal(signal.SIGKILL)
    wait_for(lambda: not runs(worker), seconds=10)
    assert not (tmp_path / "survived").exists()
