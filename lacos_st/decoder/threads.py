"""Threads of the CPU where they do more harm than good: on a busy machine, for little work, and in a forked process.

PyTorch shares each operation out among OpenMP's threads, which meet again at its end, and whoever comes first waits by
spinning. A small model has about ten such meetings a layer. Where other processes want the processors, each meeting
costs a turn of the scheduler, and the spinning takes away the time that is waited for: with a process computing on each
core, two threads took up to four times as long as one. How many threads compute changes embeddings by rounding at
most: what the kernels make of a row depends on that row alone.

OpenMP's threads do not follow into a forked process, where the first operation that counts on them waits for ever.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from lacos_st.decoder import kernels

_LOAD = Path("/proc/loadavg")


def is_busy() -> bool:
    """Whether more threads want to run on this machine now than it has processors; False where it cannot be told."""
    try:
        running = int(_LOAD.read_text(encoding="ascii").split()[3].split("/")[0])  # "0.2 0.1 0.1 3/214 8123"
    except (OSError, ValueError, IndexError):
        return False
    return running > (os.cpu_count() or 1)


@contextmanager
def as_many_threads_as_serve() -> Iterator[None]:
    """On a busy machine, let this thread compute alone; other threads and their number stay as they are."""
    threads = torch.get_num_threads()
    if threads == 1 or not is_busy() or kernels.library() is None:
        yield
        return
    kernels.limit_threads(1)
    try:
        yield
    finally:
        kernels.limit_threads(threads)


@lru_cache(maxsize=1)
def survive_forks() -> None:
    """From now on, a process that is forked from this one computes with one thread."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
