"""Loading processes are shielded from signals sent to all processes of a job."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from ifr.data.loader import Batches
from ifr.processes.loading import loading_processes
from ifr.processes.signals import kept_from_children

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def blocked(process):
    """Return the signals that a process blocks."""
    with open(f"/proc/{process}/status") as status:
        (mask,) = (int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def test_they_start_with_the_signals_blocked_and_keep_running_outside_the_context():
    before = blocked("self")
    with kept_from_children():
        batches = iter(Batches(DataLoader([1, 2, 3], num_workers=2, collate_fn=list)))
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert {signal.SIGTERM, signal.SIGINT} <= blocked(child.pid)
    assert blocked("self") == before
    assert list(batches) == [[1], [2], [3]]


def test_they_ignore_signals_except_sigterm_from_their_parent():
    with kept_from_children():
        batches = iter(Batches(DataLoader(range(20), num_workers=2, collate_fn=list)))
    children = multiprocessing.active_children()
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *(str(child.pid) for child in children)], check=True)
        assert next(batches)
    children[0].join(0.5)
    assert all(child.is_alive() for child in children)
    for child in children:
        child.terminate()
        child.join(10)
        assert child.exitcode == 0


@pytest.fixture
def spawn_by_default():
    """Make spawn the default start method, as on macOS."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_they_are_forked_whatever_the_default(spawn_by_default):
    batches = iter(DataLoader([1, 2, 3], batch_size=None, **loading_processes(2)))
    kinds = {type(child).__name__ for child in multiprocessing.active_children()}
    assert kinds == {"ForkProcess"}
    assert list(batches) == [1, 2, 3]
    assert list(DataLoader([1, 2, 3], batch_size=None, **loading_processes(0))) == [1, 2, 3]
