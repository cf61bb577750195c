"""Files that are whole or absent, and one writer at a time.

`atomic(path)` gives a temporary name beside the target, syncs what was written there and renames it: a reader
sees the old file or the new one, after a kill and after a power cut alike. `locked(path)` keeps a second
process from writing the same output. The lock is the kernel's (through `filelock`), which frees it with the
process that held it, however that ended; so there is no stale lock to detect, and a process number that was
given out again cannot confuse it. The number is written beside it for the message only. `file_name(text)` makes a name
of any text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from lacos_st.errors import LacosError

_LONGEST = 120  # bytes of a name: file systems take 255, endings and other parts included


def at_home(given: Any) -> Any:
    """What a user wrote as a path, a name or several of them, with a leading `~` read as the home directory.

    The shell does so itself for `~/mine`, but not for `--output=~/mine`, and not in a recipe.
    """
    if isinstance(given, list):
        return [at_home(item) for item in given]
    return os.path.expanduser(given) if isinstance(given, str) else given


def check_directory(path: str | Path, option: str) -> None:
    """Refuse what is no directory.

    Args:
        path: What was given.
        option: As what.

    Raises:
        LacosError: It is none.
    """
    if not Path(path).is_dir():
        raise LacosError(f"{option} {path} is no directory.")


def check_new_directory(path: str | Path) -> None:
    """Refuse an output that holds something.

    Raises:
        LacosError: It exists, and is a file or not empty.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise LacosError(f"{str(path)!r} exists already and is not empty: give another directory.")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write a file through a temporary name; after an exception the target is untouched.

    The temporary's name is fixed, so that a killed process leaves no more than one: callers that may run at the
    same time hold `locked`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp(), "note.txt")
        >>> with atomic(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """Name a file or a directory after any text: letters, digits and `._-+@` stay, `/` becomes `__`.

    Where more has to change, or the text is too long, a digest keeps different texts apart.

    Example:
        >>> file_name("bigscience/bloom-560m"), file_name(".."), file_name("a b")
        ('bigscience__bloom-560m', '__-5ec1f7e7', 'a_b-c8687a08')
    """
    name = text.replace("/", "__")
    if re.fullmatch(r"[\w+@-]([\w.+@-]*[\w+@-])?", name) and len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = re.sub(r"[^\w.+@-]|^\.|\.$", "_", name).encode()[: _LONGEST - 9].decode("utf-8", "ignore")
    return f"{short}-{digest}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def obey_umask(file: Path) -> None:
    """Give a file the mode that a new one gets: safetensors writes for its owner alone."""
    probe = file.with_name(f".{file.name}.mode")
    probe.touch()
    shutil.copymode(probe, file)
    probe.unlink()


@contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Hold `OUTPUT.lock`, so that one process at a time writes an output; makes its directory if there is none.

    Raises:
        LacosError: Another process holds it, or the directory cannot be written.
    """
    output = Path(output)
    path = output.with_name(f"{output.name}.lock")
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(encoding="utf-8").strip()
        raise LacosError(
            f"Another process ({holder or 'number unknown'}) is writing {output}. Wait for it, or choose "
            "another output."
        ) from None
    except OSError as error:
        raise LacosError(
            f"{output.parent} cannot be written: {error.strerror or error}. Choose an output elsewhere."
        ) from error
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while held: whoever waits on this file finds it unlinked and starts over
        lock.release()


def stage_for(target: Path) -> Path:
    """Make a directory for a model to be written to, on the file system on which it is to lie.

    It is beside the target, or in it where the target is a mount point, and leads nowhere by a link.
    """
    home = target.resolve()
    home.parent.mkdir(parents=True, exist_ok=True)
    mounted = home.is_dir() and home.stat().st_dev != home.parent.stat().st_dev
    stage = (home if mounted else home.parent) / f".{home.name}.{uuid.uuid4().hex[:8]}"
    stage.mkdir()
    return stage


def cache_directory() -> Path:
    """The user's cache folder of this package. It need not exist.

    It is in $LACOS_CACHE, else $XDG_CACHE_HOME, else ~/.cache (Linux), ~/Library/Caches (macOS) or %LOCALAPPDATA%
    (Windows).

    Raises:
        LacosError: Nothing names a folder, and the user has no home directory.

    Example:
        >>> cache_directory().name
        'lacos-st'
    """
    if chosen := os.environ.get("LACOS_CACHE") or os.environ.get("XDG_CACHE_HOME"):
        root = Path(chosen)
    elif sys.platform == "darwin":
        root = Path("~/Library/Caches")
    elif sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        root = Path(local)
    else:
        root = Path("~/.cache")
    try:
        return root.expanduser().absolute() / "lacos-st"
    except RuntimeError as error:  # a user without an entry in the password file, as in a container
        raise LacosError(
            f"There is no home directory to keep {str(root)!r} in: set LACOS_CACHE to a directory that you may write."
        ) from error
