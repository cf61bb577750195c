"""How a complete model gets to where it is to lie: whole, or not at all, also over one that is there.

A model is written to a *stage* beside its target. If nothing is at the target, one rename puts it there. Otherwise the
directory stays, for it may be a mount point, someone's working directory or the end of a link, and hold files of the
user's own:

1. one rename takes the stage to `.lacos-incoming/` in the target. Before it the old model is the one that counts, after
   it the new one, which is complete;
2. the old root configuration goes, and with it what the new model does not have. No library loads what has neither
   `config.json` nor `adapter_config.json` in its root;
3. the new files move in, the root configuration last.

`finish_move` does steps 2 and 3. Each of them may be done twice, so a model whose saver was killed is put right by
whoever opens it, or saves there, next.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from lacos_st.errors import LacosError
from lacos_st.files import obey_umask
from lacos_st.model.artifact import replaceable

_INCOMING, _OBSOLETE = ".lacos-incoming", "obsolete.json"
_ROOT_CONFIGS = ("config.json", "adapter_config.json")


def move_into(stage: Path, target: Path) -> None:
    """Put a complete staged model in place; files of the user's own that lie there stay.

    Raises:
        OSError: It could not be; nothing has changed.
        LacosError: It could not be moved in whole. What is missing lies in the target, for `finish_move`.
    """
    for path in stage.rglob("*.safetensors"):
        obey_umask(path)
    home = target.resolve()
    if not home.exists():
        stage.rename(home)
        return
    finish_move(home)
    new = {file.relative_to(stage) for file in stage.rglob("*") if file.is_file()}
    # folders in folders first, so that the outer ones are empty when their turn comes
    obsolete = sorted(replaceable(home) - new, key=lambda file: (-len(file.parts), file))
    (stage / _OBSOLETE).write_text(json.dumps([file.as_posix() for file in obsolete]), encoding="utf-8")
    stage.rename(home / _INCOMING)
    finish_move(home)


def finish_move(target: Path) -> None:
    """Move in what `move_into` has brought and not put in place, if there is any.

    Raises:
        LacosError: That cannot be done.
    """
    incoming = target / _INCOMING
    if not incoming.is_dir():
        return
    try:
        if any((incoming / config).is_file() for config in _ROOT_CONFIGS):  # they move last
            _move(incoming, target)
    except OSError as error:
        raise LacosError(
            f"The model that was saved to {str(target)!r} is not wholly in place ({_reason(error)}). Nothing is lost: "
            f"what is missing lies there in {_INCOMING}. Mend the cause; then LacosSentenceTransformer puts it right "
            "when it loads the model, or saves one there."
        ) from error
    shutil.rmtree(incoming, ignore_errors=True)  # holds nothing that counts any more


def _move(incoming: Path, target: Path) -> None:
    obsolete = json.loads((incoming / _OBSOLETE).read_text(encoding="utf-8"))
    files = [file.relative_to(incoming) for file in incoming.rglob("*") if file.is_file()]
    files.remove(Path(_OBSOLETE))
    files.sort(key=lambda file: (str(file) in _ROOT_CONFIGS, file))
    for name in sorted({*obsolete, str(files[-1])}, key=lambda name: name not in _ROOT_CONFIGS):
        (target / name).unlink(missing_ok=True)
    for name in obsolete:
        with suppress(OSError):  # not empty, or gone; the target itself never is
            (target / name).parent.rmdir()
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(incoming / file, target / file)
        except FileNotFoundError:
            if (incoming / file).exists():  # else another process, which opened the model too, was faster
                raise


def _reason(error: Exception) -> str:
    known = {errno.ENOSPC: "the disk is full", errno.EACCES: "it is not writable", errno.EROFS: "it is read-only"}
    told = re.search(r"os error (\d+)", str(error))  # safetensors has the number in its text
    number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
    return known.get(number, str(error))


def disk_error(error: Exception, target: Path) -> LacosError:
    """What to tell the user whose disk did not take a model, before `move_into` has begun to move.

    Args:
        error: The operating system's, or that of safetensors.
        target: What was to be written.
    """
    return LacosError(
        f"Saving to {str(target)!r} failed: {_reason(error)}. Nothing that was there has changed; free space or choose "
        "another directory and save again."
    )
