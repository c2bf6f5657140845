"""Memory and open files of long runs."""

from pathlib import Path

import pytest
from memory_use import memory_use
from tiny_experiment import write_tiny

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("what", ["train", "predict"])
def test_two_thousand_times(tmp_path: Path, what: str) -> None:
    summary = memory_use(what, write_tiny(tmp_path), tmp_path / "output", 2000, timeout=3600)
    assert summary["calls"] == 2000
    # MB per thousand; a batch that was kept each time would be 50, a picture 20, its detections 35.
    assert summary["slope"] < 5
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file that is just being read
    fewest, most = summary["tensors"]
    assert most - fewest <= 25  # losses of up to 20 iterations wait for the next line of the log
