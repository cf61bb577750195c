"""Which model a name means: a local directory first, then an embedded model, then one on the Hub."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from lacos_st.artifact import RECORD
from lacos_st.embedded import EMBEDDED, embedded_directory
from lacos_st.errors import LacosError


def resolve(name: str) -> str:
    """Directory or Hub name of a model.

    Args:
        name: As a user gives it. An embedded model is unpacked on the first call.

    Returns:
        What sentence-transformers and transformers load.

    Raises:
        LacosError: A file, a directory that holds no model, or a path that does not exist.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("modules.json", "config.json", "adapter_config.json")):
            raise LacosError(
                f"The directory {name!r} holds no model (no modules.json, config.json or adapter_config.json). "
                "Remove it, or give another name."
            )
        return name
    if path.is_file():
        raise LacosError(f"{name!r} is a file, and a model is a directory.")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise LacosError(
            f"There is no directory {name!r}: give the path of a saved model, or a Hub name (owner/model)."
        )
    return str(embedded_directory(name)) if name in EMBEDDED else name


def is_bloom(name: str) -> bool:
    """Whether a directory, embedded model or Hub name (where it can be reached) is a BLOOM, or an adapter for one."""
    if Path(name, RECORD).is_file() or (name in EMBEDDED and not Path(name).is_dir()):
        return True
    try:
        return bool(AutoConfig.from_pretrained(name).model_type == "bloom")
    except (OSError, ValueError):  # another library's, or none at all
        return False
