"""Memory that a test takes for sure: new pages, whatever the process has freed before."""

from __future__ import annotations

import mmap

import numpy as np


def touched(size: int) -> np.ndarray:
    """Map and touch ``size`` bytes: what malloc has freed before has no part in it."""
    private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(private, dtype=np.uint8)
    array[:] = 1
    return array
