"""How glibc's malloc hands out the memory of large tensors."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 20_000_000  # bytes
_KEPT = 40_000_000  # free bytes at the end of the heap


def keep_large_buffers_apart() -> None:
    """Make glibc map every buffer of 20 MB and more on its own, so that freed ones leave no holes in the heap.

    Its own limit grows to 32 MB, more than many activations. docs/benchmarks.md says what this saves and costs. The
    environment variable MALLOC_MMAP_THRESHOLD_ takes precedence; other allocators and systems are left alone.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _KEPT)
