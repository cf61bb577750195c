"""The models and samples that travel with the package.

`assets/bloom-mini/` is a BLOOM base in 8 bits; `assets/lacos-bloom/` is the adapter trained on it, with the settings
that make a sentence-transformers directory of the two. On disk they are *packed*: the embedding table lies in 4 bits an
entry (`packed_table.py`), where stock transformers wants floats, the tokenizer is compressed, and the adapter's
directory holds no second base. `unpack` writes what stock sentence-transformers loads; `embedded_directory` does so
once, into a cache:

    $LACOS_CACHE, else $XDG_CACHE_HOME, else ~/.cache (Linux), ~/Library/Caches (macOS), %LOCALAPPDATA% (Windows)
      lacos-st/<content hash>/<name>/

The hash names the assets' content, so a new release never reads an old cache. A directory appears there by one rename
and complete, also where several processes unpack at once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lacos_st.errors import LacosError
from lacos_st.packed_table import pack_table, unpack_table

EMBEDDED = ("bloom-mini", "lacos-bloom")
"""Names of the embedded models: the base, and the base with its LACoS adapter."""

ASSETS = Path(__file__).parent / "assets"
_TRIPLETS = ("nli-train", "es-train", "fr-train", "pt-train", "it-train", "across-train", "nli-dev")
_SAMPLES = {**{name: f"samples/{name}.jsonl.gz" for name in _TRIPLETS}, "sts17": "sts"}
_TABLE = "word_embeddings"
_LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_FINAL_GAIN = "ln_f.weight"
_TOKENIZER = "tokenizer.json"
_SHARED = ("config.json", _TOKENIZER, "tokenizer_config.json")


def sample_path(name: str) -> Path:
    """Path of an embedded data sample.

    Args:
        name: "nli-train" (triplets, mostly English), "es-train", "fr-train", "pt-train", "it-train" (English ones
            translated by rules), "across-train" (English and translations), "nli-dev" (held-out triplets) or "sts17"
            (a folder of STS17 test pairs).
            Sources and licences: `assets/NOTICE.md`.

    Returns:
        The file or folder.

    Raises:
        LacosError: There is no sample of that name.

    Example:
        >>> sample_path("nli-dev").name
        'nli-dev.jsonl.gz'
    """
    if name not in _SAMPLES:
        raise LacosError(f"There is no embedded sample {name!r}: choose from {', '.join(_SAMPLES)}.")
    return ASSETS / _SAMPLES[name]


def pack(directory: str | Path, output: str | Path) -> None:
    """Write a BLOOM checkpoint in the packed form: int8 linear layers, 4-bit embedding table, compressed tokenizer.

    Columns of the table that the final layer norm silences keep 8 bits: bloom-mini says in them how much a token
    counts, and its layers amplify that.

    Args:
        directory: A checkpoint that `transformers.BloomModel` reads, in full precision, with its tokenizer.
        output: Directory to write; files of the same names in it are replaced.

    Raises:
        LacosError: It is no BLOOM checkpoint, lies in several files, or has entries that are no numbers.
    """
    source, target = Path(directory), Path(output)
    missing = [name for name in (*_SHARED, "model.safetensors") if not (source / name).is_file()]
    if missing:
        raise LacosError(f"{str(source)!r} has no {', '.join(missing)}: pack() needs one whole checkpoint.")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bloom":
        raise LacosError(f"{str(source)!r} is a {config.get('model_type')!r} model, and pack() takes BLOOM.")
    weights = {
        key.removeprefix("transformer."): tensor for key, tensor in load_file(source / "model.safetensors").items()
    }
    broken = [key for key, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise LacosError(f"{broken[0]!r} in {str(source)!r} has entries that are infinite or no numbers.")
    packed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        layer = key.removesuffix(".weight")
        if layer == _TABLE:
            table = pack_table(tensor, weights[_FINAL_GAIN].half() == 0)
            packed |= {f"{_TABLE}.{part}": value for part, value in table.items()}
        elif layer != key and layer.rpartition(".")[2] in _LINEAR:
            scale = tensor.float().abs().amax(1)
            packed[key] = (tensor.float() * (127 / scale.clamp_min(1e-20))[:, None]).round().to(torch.int8)
            packed[f"{layer}.SCB"] = scale
            rows = torch.tensor(0, dtype=torch.uint8, device="cpu")  # how the weights lie, in bitsandbytes' terms
            packed[f"{layer}.weight_format"] = rows
        elif key != "lm_head.weight":  # tied to the table
            packed[key] = tensor.half()
    config |= {
        "architectures": ["BloomModel"],
        "dtype": "float16",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((source / _TOKENIZER).read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
    (target / _TOKENIZER).unlink(missing_ok=True)  # of an older packing
    (target / f"{_TOKENIZER}.gz").write_bytes(gzip.compress(compact, mtime=0))
    shutil.copyfile(source / "tokenizer_config.json", target / "tokenizer_config.json")
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file(packed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner reads


def pack_adapter(directory: str | Path, output: str | Path) -> None:
    """Write what a saved LACoS model has beyond the embedded base: adapter and sentence-transformers settings.

    Args:
        directory: A self-contained model that was trained on the embedded "bloom-mini" with its own template.
        output: Directory to write; an old one is replaced.

    Raises:
        LacosError: The model has another base or another template, or not all modules that the base has.
    """
    source, target = Path(directory), Path(output)
    record = json.loads((source / "lacos.json").read_text(encoding="utf-8"))
    base = load_file(ASSETS / "bloom-mini" / "model.safetensors")
    weights = load_file(source / "model.safetensors")
    key = "h.0.self_attention.query_key_value.weight"
    config = json.loads((ASSETS / "bloom-mini" / "config.json").read_text(encoding="utf-8"))
    attention = "causal" if config.get("is_causal", True) else "bidirectional"
    as_the_base = (record["template"], record["attention"]) == ("{text}</s>", attention)
    if not as_the_base or key not in weights or not torch.equal(weights[key], base[key]):
        raise LacosError(
            f"{str(source)!r} was not trained on the embedded 'bloom-mini' with its attention and '{{text}}</s>': "
            "train it again, or unpack the base that it belongs to."
        )
    modules = [path for path in (ASSETS / "bloom-mini").iterdir() if path.is_dir()]
    if missing := [path.name for path in modules if not (source / path.name).is_dir()]:
        raise LacosError(
            f"{str(source)!r} has no {', '.join(missing)}, which `unpack` would give back to it: an adapter travels "
            "with the base's own modules. Save the model whole."
        )
    training = json.loads((source / "training.json").read_text(encoding="utf-8"))
    paths = {record["base"]["name"]: "bloom-mini", training["recipe"]["output"]: "lacos-bloom"}
    record["base"] = {"name": "bloom-mini", "revision": None}
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for file in ("model.safetensors", *_SHARED):  # the base's own, which `unpack` puts there
        (target / file).unlink()
    for theirs in modules:
        if _same_module(target / theirs.name, theirs):  # a module that is the base's own as well
            shutil.rmtree(target / theirs.name)
    for file in ("README.md", "training.json"):  # they name the directories of the machine that trained it
        text = (target / file).read_text(encoding="utf-8")
        for path, name in paths.items():
            text = text.replace(path, name)
        (target / file).write_text(text, encoding="utf-8")
    (target / "lacos.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    settings = target / "adapter" / "adapter_config.json"
    adapter = json.loads(settings.read_text(encoding="utf-8")) | {"base_model_name_or_path": "bloom-mini"}
    settings.write_text(json.dumps(adapter, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (target / "adapter" / "adapter_model.safetensors").chmod(0o644)


def _same_module(mine: Path, theirs: Path) -> bool:
    """Whether two folders hold the same sentence-transformers module; weights are compared in 16 bits."""
    return all(_same_file(mine / path.name, path) for path in theirs.iterdir())


def _same_file(mine: Path, theirs: Path) -> bool:
    if not mine.is_file():
        return False
    if theirs.suffix != ".safetensors":
        return mine.read_bytes() == theirs.read_bytes()
    weights = load_file(mine)
    return all(torch.equal(weights[key].half(), value.half()) for key, value in load_file(theirs).items())


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
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LacosError(f"{str(target)!r} exists already and is not empty: give another directory.")
    stage = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        stage.chmod(0o755)
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
    (directory / "model.safetensors").chmod(0o644)
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


def cache_directory() -> Path:
    """The user's cache folder for embedded models; see the head of this file. It need not exist.

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
