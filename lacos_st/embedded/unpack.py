"""The models that travel with the package, as directories that sentence-transformers loads.

`assets/bloom-mini/` is a BLOOM base in 8 bits; `assets/lacos-bloom/` is the adapter trained on it, with the settings
that make a sentence-transformers directory of the two. On disk they are *packed*: the embedding table lies in 4 bits an
entry (`packed_table.py`), where stock transformers wants floats, the tokenizer is compressed, and the adapter's
directory holds no second base. `unpack` writes what stock sentence-transformers loads; `embedded_directory` does so
once, into a cache:

    <cache>/<content hash>/<name>/

The hash names the assets' content, so a new release never reads an old cache. A directory appears there by one rename
and complete, also where several processes unpack at once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lacos_st.embedded.names import ASSETS, EMBEDDED
from lacos_st.embedded.packed_table import unpack_table
from lacos_st.errors import LacosError
from lacos_st.files import cache_directory, check_new_directory, obey_umask, stage_for

_TABLE = "word_embeddings"
_FINAL_GAIN = "ln_f.weight"
_TOKENIZER = "tokenizer.json"


def unpack(name: str, directory: str | Path) -> None:
    """Write an embedded model as a directory that stock sentence-transformers or transformers loads.

    Args:
        name: "lacos-bloom" (base and adapter) or "bloom-mini" (the base), both sentence-transformers models.
        directory: Where to; it must not exist, or be empty. It appears at once and complete.

    Raises:
        LacosError: There is no embedded model of that name, the directory is in use, or it cannot be written.
    """
    if name not in EMBEDDED:
        raise LacosError(f"There is no embedded model {name!r}: choose from {', '.join(EMBEDDED)}.")
    target = Path(directory)
    check_new_directory(target)
    stage = None
    try:
        stage = stage_for(target)
        _write(name, stage)
        stage.rename(target)  # replaces an empty directory
    except (OSError, SafetensorError) as error:  # the latter where a disk is full
        reason = getattr(error, "strerror", None) or error
        raise LacosError(
            f"Unpacking {name!r} to {str(target)!r} failed: {reason}. Nothing was left there; "
            "choose another directory (for the cache: set LACOS_CACHE)."
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _write(name: str, directory: Path) -> None:
    source = ASSETS / "bloom-mini"
    packed = load_file(source / "model.safetensors")
    table = {key.rpartition(".")[2]: packed.pop(key) for key in list(packed) if key.startswith(f"{_TABLE}.")}
    packed[f"{_TABLE}.weight"] = unpack_table(table, packed[_FINAL_GAIN] == 0)
    # transformers computes in the dtype it finds, and no CPU computes well in fp16.
    unpacked = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in packed.items()}
    save_file(unpacked, directory / "model.safetensors", metadata={"format": "pt"})
    obey_umask(directory / "model.safetensors")
    for entry in source.iterdir():
        if entry.is_dir():  # sentence-transformers' modules over the base
            shutil.copytree(entry, directory / entry.name)
        elif entry.name not in ("model.safetensors", f"{_TOKENIZER}.gz"):
            shutil.copyfile(entry, directory / entry.name)
    (directory / _TOKENIZER).write_bytes(gzip.decompress((source / f"{_TOKENIZER}.gz").read_bytes()))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if name != "bloom-mini":  # over the base: the sentence-transformers settings and the adapter
        shutil.copytree(ASSETS / name, directory, dirs_exist_ok=True)


@lru_cache
def _content_hash(name: str) -> str:
    digest = hashlib.sha256()
    for folder in dict.fromkeys(("bloom-mini", name)):
        for file in sorted((ASSETS / folder).rglob("*")):
            if file.is_file():
                digest.update(f"{folder}/{file.relative_to(ASSETS / folder).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def embedded_directory(name: str) -> Path:
    """Directory of an embedded model in the user's cache, unpacked on the first call.

    Args:
        name: "lacos-bloom" or "bloom-mini".

    Returns:
        A directory that stock sentence-transformers loads. Treat it as read-only.

    Raises:
        LacosError: There is no embedded model of that name, or the cache cannot be written.
    """
    if name not in EMBEDDED:
        raise LacosError(f"There is no embedded model {name!r}: choose from {', '.join(EMBEDDED)}.")
    target = cache_directory() / _content_hash(name) / name
    if not (target / "config.json").is_file():
        try:
            unpack(name, target)
        except LacosError:
            if not (target / "config.json").is_file():  # else another process was first
                raise
    return target
