"""The processes that load data are beyond the reach of the signals that a whole job gets."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from ifr.data.loader import Batches
from ifr.processes.signals import kept_from_children, loading_processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def blocked(process):
    """The signals that a process has blocked."""
    with open(f"/proc/{process}/status") as status:
        (mask,) = (int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def test_they_run_on_leaving_the_protection_and_have_the_signals_blocked():
    before = blocked("self")
    with kept_from_children():
        batches = iter(Batches(DataLoader([1, 2, 3], num_workers=2, collate_fn=list)))
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert {signal.SIGTERM, signal.SIGINT} <= blocked(child.pid)
    assert blocked("self") == before
    assert list(batches) == [[1], [2], [3]]


def test_they_outlive_a_signal_of_others_and_end_by_one_of_their_parent():
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
def started_afresh():
    """Python starts processes afresh unless told otherwise, as by default on macOS and since 3.14."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_they_are_forked_whatever_the_default_is(started_afresh):
    batches = iter(DataLoader([1, 2, 3], batch_size=None, **loading_processes(2)))
    kinds = {type(child).__name__ for child in multiprocessing.active_children()}
    assert kinds == {"ForkProcess"}
    assert list(batches) == [1, 2, 3]
    assert list(DataLoader([1, 2, 3], batch_size=None, **loading_processes(0))) == [1, 2, 3]
