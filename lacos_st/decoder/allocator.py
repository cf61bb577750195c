"""The C library's allocator, and what this process holds.

glibc serves blocks under a threshold from its heap, where temporary ones leave holes between those that are kept, and
maps larger ones, which it gives back exactly. Two settings, both for the whole process and both left alone where the
environment has `MALLOC_MMAP_THRESHOLD_` or `MALLOC_TRIM_THRESHOLD_`:

- `settle_heap`, after a model was loaded: blocks up to 32 MB stay in the heap, so that a small model does not map fresh
  pages at every batch;
- `give_memory_back`, before training with gradient checkpointing: every block of 1 MB or more goes back at once.
"""

import os

from lacos_st.errors import LacosError

MAPPED_FROM = 32 << 20  # bytes

# glibc's mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USERS_SETTING = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
_SMALL = 1 << 20
_mapped_from = MAPPED_FROM


def _glibc(name: str, *arguments: int) -> bool:
    """Call a function of glibc's allocator; False where there is none or it refuses."""
    import ctypes

    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    return bool(function and function(*arguments))


def _map_blocks_from(size: int) -> bool:
    """Take blocks of at least ``size`` bytes straight from the system; smaller ones stay in the heap when freed."""
    if _USERS_SETTING:
        return False
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2 * MAPPED_FROM)  # else glibc would trim at every freed block
    return _glibc("mallopt", _M_MMAP_THRESHOLD, size)


def settle_heap() -> None:
    """After a model was loaded: give back what that has freed, and set glibc's thresholds for what follows.

    By default glibc trims its heap at every freed block of 128 kB until it has seen large blocks come and go, and the
    pages must be mapped again at the next: a small model encodes half as fast. So blocks up to 32 MB stay in the heap
    from here on, which glibc comes to by itself in a long process; only up to 1 MB after `give_memory_back`.
    """
    _glibc("malloc_trim", 0)
    _map_blocks_from(_mapped_from)


def give_memory_back() -> bool:
    """Let this process return every freed block of 1 MB or more to the system at once (glibc only).

    Training on a CPU then holds what it uses and no holes: 40 % less, at 1.7 times the time, since fresh pages must
    be mapped again. Worth it with gradient checkpointing, which trades time for memory already. To be called before the
    model is loaded: the holes that quantising leaves would be filled again and stay, 0.2 GB at bloom-560m's size.

    Returns:
        Whether the C library took the setting.
    """
    global _mapped_from
    _mapped_from = _SMALL
    return _map_blocks_from(_SMALL)


def resident_bytes(peak: bool = False) -> int:
    """Return this process's resident memory, or its peak since `reset_peak`, from /proc (Linux).

    Raises:
        LacosError: Elsewhere.
    """
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except OSError as error:
        raise LacosError(f"resident memory is read from /proc, which this system ({os.name}) has not.") from error
    raise LacosError(f"/proc/self/status has no {field} line on this system.")


def reset_peak() -> None:
    """Start `resident_bytes(peak=True)` anew (Linux; a no-op where the kernel does not allow it)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return
