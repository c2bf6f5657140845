"""Freed large buffers leave no holes in the heap."""

import os
import platform
import subprocess
import sys

import pytest

HOLES = """
import os, torch
from ifr.processes.malloc import keep_large_buffers_apart

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

before = resident()
{call}
torch.ones(30_000_000 // 4)  # glibc's limit grows to the size of what is freed
large = [torch.ones(25_000_000 // 4) for _ in range(8)]
del large[:-1]
print(resident() - before)
"""


def held(call: str) -> float:
    """Megabytes that a process holds after it has freed seven of eight tensors of 25 MB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", HOLES.format(call=call)], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_large_buffers_leave_no_holes() -> None:
    assert held("keep_large_buffers_apart()") < 60 < 150 < held("")
