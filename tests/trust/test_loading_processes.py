"""The processes that load data are beyond the reach of the signals that a whole job gets."""

import multiprocessing
import signal
import sys

import pytest
from torch.utils.data import DataLoader

from ifr.hosts.standalone.data.worker_errors import Batches
from ifr.hosts.standalone.signals import kept_from_children

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
