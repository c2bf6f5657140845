"""The short form of tests/soak/test_memory.py: iterations and predictions leak no tensors or files."""

from pathlib import Path

import pytest
from memory_use import memory_use

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.mark.parametrize("what", ["train", "predict"])
def test_no_tensors_or_files_accumulate(tiny: Path, tmp_path: Path, what: str) -> None:
    summary = memory_use(what, tiny, tmp_path / "output", 60, timeout=170)
    fewest, most = summary["files"]
    assert most - fewest <= 1  # a file may be open for reading
    fewest, most = summary["tensors"]
    assert most - fewest <= 25  # losses of up to 20 iterations are kept until the next log line
    assert summary["last"] - summary["after_first"] < 20  # MB; too few iterations for a tighter bound
