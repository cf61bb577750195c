"""As many processes as there are cores."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def cores() -> ProcessPoolExecutor:
    """A pool of them, forked from a server that has imported the script once and started no threads.

    A fork of a process whose threads have computed can wait forever for them; one that starts anew imports PyTorch
    again, which takes longer than the work.
    """
    return ProcessPoolExecutor(os.cpu_count(), get_context("forkserver"))
