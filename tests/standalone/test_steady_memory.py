"""The short form of tests/soak/test_memory.py: nothing is kept from one iteration or picture to the next."""

from pathlib import Path

import pytest
from memory_use import memory_use

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.mark.parametrize("what", ["train", "predict"])
def test_no_tensor_and_no_file_is_kept(tiny: Path, tmp_path: Path, what: str) -> None:
    summary = memory_use(what, tiny, tmp_path / "output", 60, timeout=170)
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file that is just being read
    fewest, most = summary["tensors"]
    assert most - fewest <= 25  # losses of up to 20 iterations wait for the next line of the log
    assert summary["last"] - summary["after_first"] < 20  # MB; so few iterations say nothing finer
