"""What the allocator is told, each time in a process of its own: the settings are the process's."""

import os
import subprocess
import sys

import pytest
import torch

from lacos_st.decoder.allocator import reset_peak, resident_bytes


def test_resident_memory_grows_with_what_is_touched():
    reset_peak()
    before = resident_bytes()
    block = torch.ones(20_000_000)
    assert resident_bytes() - before > 60e6
    del block
    assert resident_bytes(peak=True) - before > 60e6


@pytest.mark.parametrize("given_back", [False, True])
def test_after_loading_it_is_settled_which_blocks_are_mapped(given_back):
    """In a process of its own: the setting is the process's."""
    code = (
        "import ctypes, torch\n"
        "from lacos_st.decoder.allocator import give_memory_back, settle_heap\n"
        "class Heap(ctypes.Structure): _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]\n"
        "info = ctypes.CDLL(None).mallinfo2; info.restype = Heap\n"
        "mapped = lambda: getattr(info(), '3')\n"
        f"given_back = {given_back} and give_memory_back()\n"
        "settle_heap()\n"
        "before, kept = mapped(), []\n"
        "for _ in range(20):\n"
        "    large = torch.ones(1_000_000); kept.append(torch.ones(300_000)); del large\n"
        "assert mapped() == before + (20 if given_back else 0), (before, mapped())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_user_has_set_stays():
    code = "from lacos_st.decoder.allocator import give_memory_back; assert not give_memory_back()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"})


def test_memory_is_given_back():
    """In a process of its own: the setting is the process's."""
    code = (
        "import torch; from lacos_st.decoder.allocator import give_memory_back, resident_bytes\n"
        "assert give_memory_back()\n"
        "before = resident_bytes()\n"
        "kept = []\n"
        "for _ in range(20):\n"
        "    large = torch.ones(2_000_000); kept.append(torch.ones(300_000)); del large\n"
        "assert resident_bytes() - before < 40e6, resident_bytes() - before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
