"""What is checked where a model's directory is opened, before anything is built.

A directory comes from elsewhere: it may be cut short, of another version, or made to do harm. So its JSON files are
read and checked against their types, and what they describe is built once on torch's "meta" device, where tensors have
shapes and no memory: the host libraries' own checks then speak in good time, and the shapes are held against those
in the headers of the safetensors files. Whatever is wrong is one `LacosError` with the file's name.

- `check_directory`: the files that the directory's own listings name, and the modules after the transformer;
- `check_transformer`: the base and its adapters, by directory or by name on the Hub (where weights come later).
What the JSON files may say: `schemas.py`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from packaging.version import Version
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from sentence_transformers.base.modules import Module, Transformer
from sentence_transformers.util import import_module_class
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from lacos_st.errors import LacosError
from lacos_st.model.artifact import RECORD, UNNAMED
from lacos_st.model.decoders import check_decoder
from lacos_st.model.schemas import (
    Entry,
    Model,
    Tokenizer,
    check_attention,
    check_dtype,
    check_layers,
    check_quantization,
    checking,
    inside,
    typed,
)
from lacos_st.quiet import without

_CODE = "activation_function"  # of `Dense`: a class of torch, as a text
_FROM_BASE = ("olora", "pissa", "corda", "loftq", "eva", "lora_ga")  # `init_lora_weights` that computes with weights
_FLOATS = ("F64", "F32", "F16", "BF16")
Tensors = dict[str, tuple[tuple[int, ...], str, str]]  # name -> shape, dtype as safetensors writes it, file


def _not_whole(directory: Path, name: str, fault: str) -> LacosError:
    return LacosError(f"The model in {str(directory)!r} is not whole ({name} is {fault}): copy it again.")


def _read_json(directory: Path, name: str) -> Any:
    try:
        return json.loads((directory / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise _not_whole(directory, name, "missing") from None
    except (ValueError, RecursionError) as error:
        raise _not_whole(directory, name, "damaged") from error


def _read_header(directory: Path, name: str) -> Tensors:
    try:
        with safe_open(str(directory / name), "np") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, no mapping
            return {key: (tuple(part.get_shape()), part.get_dtype(), name) for key, part in parts.items()}
    except FileNotFoundError:
        raise _not_whole(directory, name, "missing") from None
    except SafetensorError as error:
        raise _not_whole(directory, name, "damaged") from error


# -- the files of a directory ----------------------------------------------------------------------------------


def check_directory(directory: Path, module_classes: Mapping[str, type[nn.Module]], trusted: bool = False) -> None:
    """Check a local model: that no file is lost or cut short, and the modules after the transformer.

    Args:
        directory: Where it lies. Of a name on the Hub nothing is known yet.
        module_classes: Names in `modules.json` of classes that need no import.
        trusted: Whether the user lets `modules.json` name classes of its own.

    Raises:
        LacosError: With the file's name.
    """
    if not directory.is_dir():
        return
    ours = (directory / RECORD).is_file()
    for file in sorted(directory.glob("*.json")):
        _read_json(directory, file.name)
    if ours:
        _read_json(directory, "tokenizer.json")
    for name, schema in {"tokenizer_config.json": Tokenizer, "config_sentence_transformers.json": Model}.items():
        if (directory / name).is_file():
            typed(_read_json(directory, name), schema, directory / name, known_only=False)
    _check_prompts(directory)
    if ours or (directory / "modules.json").is_file():
        entries = _entries(directory)
        kinds = [_class_of(entry["type"], directory / "modules.json", module_classes, trusted) for entry in entries]
        if kinds[0] is not None and not issubclass(kinds[0], Transformer):
            raise LacosError(
                f"The first module in {str(directory / 'modules.json')!r} is {kinds[0].__name__}, and LACoS needs "
                "LacosTransformer there."
            )
        for entry, kind in zip(entries, kinds, strict=True):
            if kind is not None:
                _check_module(directory, entry["path"], kind, whole=ours)


def _check_prompts(directory: Path) -> None:
    file = directory / "config_sentence_transformers.json"
    told = _read_json(directory, file.name) if file.is_file() else {}
    with checking(file):
        Version(told.get("__version__", {}).get("sentence_transformers", "0"))
    if told.get("default_prompt_name") is not None and told["default_prompt_name"] not in told.get("prompts", {}):
        raise LacosError(f"{str(file)!r} has no prompt {told['default_prompt_name']!r}, its default_prompt_name.")


def _entries(directory: Path) -> list[dict[str, Any]]:
    file = directory / "modules.json"
    entries = _read_json(directory, file.name)
    if not isinstance(entries, list) or not entries:
        raise LacosError(f"{str(file)!r} must list the model's modules, and holds {str(entries)[:40]}.")
    for entry in entries:
        typed(entry, Entry, file)
        inside(entry["path"], file, "a module's folder")
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names) or any("." in name or not name or hasattr(nn.Sequential, name) for name in names):
        raise LacosError(f"{str(file)!r} must give each module a name of its own without a dot, and gives {names}.")
    return entries


def _class_of(
    name: str, listing: Path, module_classes: Mapping[str, type[nn.Module]], trusted: bool
) -> type[Module] | None:
    """The class that `modules.json` names; None for one that is neither ST's nor ours, which only loading imports."""
    kind = module_classes.get(name)
    if kind is None and "." not in name:
        raise LacosError(f"{str(listing)!r} names {name!r}, which is no class: one is written as package.module.Class.")
    if kind is None and name.startswith("lacos_st."):
        raise LacosError(
            f"{str(listing)!r} names {name!r}, which this version of lacos-st has not: load the model with the version "
            "that saved it."
        )
    if kind is None and trusted and not name.startswith("sentence_transformers."):
        return None
    if kind is None:
        directory = str(listing.parent)
        with checking(listing):
            try:
                kind = import_module_class(name, directory)
            except ValueError as refusal:  # so ST refuses classes that are not its own, and imports none
                raise LacosError(
                    f"{str(listing)!r} names {name!r}, which is not part of sentence-transformers. Loading it would "
                    "run Python code, that of a file in the model's directory or of an installed package, so it was "
                    "refused. If you have read that code and trust it, load the model in Python: "
                    f"LacosSentenceTransformer({directory!r}, trust_remote_code=True)."
                ) from refusal
    if not (isinstance(kind, type) and issubclass(kind, Module)):
        raise LacosError(f"{str(listing)!r} names {name!r}, which is no module.")
    return kind


def _check_module(directory: Path, folder: str, kind: type[Module], whole: bool) -> None:
    """Build one of sentence-transformers' modules without memory, as it will be built."""
    first, settings = issubclass(kind, Transformer), f"{folder}/{kind.config_file_name}"
    if ((whole or first) and not (directory / folder).is_dir()) or not (first or folder):
        raise LacosError(f"{str(directory / 'modules.json')!r} names {folder!r}, where no module is: copy it again.")
    if first:
        return  # see `check_transformer`
    for file in sorted((directory / folder).rglob("*")):
        name = file.relative_to(directory).as_posix()
        if file.suffix == ".json":
            check_layers(_read_json(directory, name), file)
        elif file.suffix == ".safetensors":
            _read_header(directory, name)
    if whole:
        _read_json(directory, settings)
    weights = directory / folder / "model.safetensors"
    with checking(f"{directory / settings}, {weights.name}" if weights.is_file() else directory / settings):
        told = kind.load_config(str(directory), subfolder=folder, local_files_only=True)
        typed(told, _arguments(kind, told), directory / settings, known_only=False)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter")
            try:
                kind.load(str(directory), subfolder=folder, local_files_only=True)
            except ValueError as error:
                if whole and f"Could not find '{weights.name}'" in str(error):
                    raise _not_whole(directory, f"{folder}/{weights.name}", "missing") from error
                raise


def _arguments(kind: type[Module], told: dict[str, Any]) -> type:
    """Types of a module's arguments, as its class declares them, of those that a file gives."""
    hints = {key: hint for key, hint in get_type_hints(kind.__init__).items() if key in told and key != _CODE}
    return TypedDict(kind.__name__, {key: int | float if hint is float else hint for key, hint in hints.items()})  # type: ignore[operator]


@contextmanager
def naming_tokenizer(module: nn.Module, name: str) -> Iterator[None]:
    """Let what fails after the model is there, which is its tokenizer, be an error of ours.

    Args:
        module: The transformer, which is being loaded.
        name: Where from.

    Raises:
        LacosError: With the files' names.
    """
    try:
        yield
    except (LacosError, MemoryError):
        raise
    except Exception as error:  # `tokenizers` raises no other
        if not hasattr(module, "model"):
            raise
        raise LacosError(
            f"The tokenizer in {name!r} (tokenizer.json, tokenizer_config.json) cannot be loaded: {error}. Copy the "
            "model again."
        ) from error


# -- the base and its adapters ---------------------------------------------------------------------------------


def check_transformer(name: str, adapters: list[str], places: dict[str, Any]) -> None:
    """Check what a base and its adapters are said to be, and against their tensors where these lie in a directory.

    Args:
        name: A directory, or a name on the Hub.
        adapters: Names of the adapters, the active one first, as `lacos.json` gives them.
        places: `token`, `revision`, `cache_dir`, `local_files_only`, `subfolder`: where it lies.

    Raises:
        LacosError: With the file's name; or there is no such model.
    """
    keys = ("token", "revision", "cache_dir", "local_files_only", "subfolder")
    hub = {key: places[key] for key in keys if places.get(key) is not None}
    root = Path(name)
    base: Any = name
    try:
        found = find_adapter_config_file(name, **hub)
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    if found is not None:
        root = Path(found).parent
        told = _read_json(root, "adapter_config.json")
        base = told.get("base_model_name_or_path") if isinstance(told, dict) else None
        if not base or not isinstance(base, str):
            raise LacosError(f"{found!r} does not say which base the adapter is for (base_model_name_or_path).")
        if base == UNNAMED:
            raise LacosError(f"Stock classes saved {name!r} and left its base behind: save the first with lacos-st.")
        hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    elif root.is_dir():
        root = root / hub.get("subfolder", "")
        base = str(root)
    try:
        config = _read_config(base, hub)
    except LacosError as error:
        raise (error if found is None else LacosError(f"{error} (the base that {found!r} names)")) from error.__cause__
    check_decoder(config, base)
    file = Path(base, "config.json")
    model = _build(config, file)
    if Path(base).is_dir() and (tensors := _base_tensors(Path(base), whole=(root / RECORD).is_file())):
        _compare(model.state_dict(), tensors, Path(base), file, model.base_model_prefix)
        _check_stored(config, tensors, Path(base))
    if found is None and not root.is_dir():
        return  # on the Hub, beside its base
    folder = "" if found is not None else "adapter/"
    for position, adapter in enumerate(adapters or (["default"] if found is not None else [])):
        if not (root / folder / (adapter if position else "")).is_dir():
            raise LacosError(f"{str(root / RECORD)!r} names the adapter {adapter!r}, whose folder is not there.")
        _check_adapter(root, folder if position == 0 else f"{folder}{adapter}/", config, whole=Path(name).is_dir())


def _no_model(name: str, error: Exception) -> LacosError:
    reason = " ".join(str(error).split())
    return LacosError(f"There is no directory {name!r}, and no such model can be had from the Hub: {reason}")


def _read_config(base: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The base's `config.json`, without what could load code."""
    file = Path(base, "config.json")
    if Path(base).is_dir():
        config = _read_json(Path(base), "config.json")
    else:
        try:
            config, _ = PreTrainedConfig.get_config_dict(base, **hub)
        except (OSError, ValueError) as error:
            raise _no_model(base, error) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LacosError(f"{str(file)!r} does not say what model it is of (model_type).")
    check_attention(config, file)
    for key in ("compression_config", "transformers_weights"):
        if config.get(key) is not None:
            raise LacosError(f"{str(file)!r} says {key}, which LACoS does not load: take that line out.")
    check_layers(config, file)
    check_quantization(config.get("quantization_config"), str(file))
    for key in ("dtype", "torch_dtype"):
        check_dtype(config.get(key), file)
    length, causal = config.get("seq_length", 1), config.get("is_causal", True)
    if type(length) is not int or length < 1 or type(causal) is not bool:
        raise LacosError(f"{str(file)!r} must say seq_length: a number of tokens, and is_causal: true or false.")
    return config


def _build(config: dict[str, Any], file: Path) -> PreTrainedModel:
    with checking(file), torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(**config), trust_remote_code=False)


def _base_tensors(directory: Path, whole: bool) -> Tensors:
    """Headers of the base's files; empty where it lies in another format than safetensors."""
    index = directory / "model.safetensors.index.json"
    names = {"model.safetensors"} if whole or (directory / "model.safetensors").is_file() else set()
    if index.is_file():
        places = _read_json(directory, index.name)
        places = places.get("weight_map") if isinstance(places, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise LacosError(f"{str(index)!r} does not say in which files the tensors are (weight_map).")
        names = {inside(name, index, "a file of tensors") for name in places.values()}
    return {key: tensor for name in sorted(names) for key, tensor in _read_header(directory, name).items()}


def _check_adapter(root: Path, folder: str, config: dict[str, Any], whole: bool) -> None:
    """Inject an adapter into a base without memory, and compare it with its tensors."""
    file = root / f"{folder}adapter_config.json"
    told = _read_json(root, f"{folder}adapter_config.json")
    if isinstance(told, dict) and told.get("megatron_config") is not None:
        raise LacosError(f"{str(file)!r} says megatron_config, which can load code: take that line out.")
    tensors = _read_header(root, f"{folder}adapter_model.safetensors") if whole else {}
    model = _build(config, file)
    with checking(file), torch.device("meta"):
        adapter = PeftConfig.from_pretrained(str(file.parent))
        if str(getattr(adapter, "init_lora_weights", None)).startswith(_FROM_BASE):
            adapter.init_lora_weights = False
        inject_adapter_in_model(adapter, model, "default")
        state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    if whole:
        tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
        _compare(state, tensors, root, file, model.base_model_prefix)
        _check_stored({}, tensors, root)


def _compare(state: dict[str, torch.Tensor], tensors: Tensors, root: Path, file: Path, prefix: str) -> None:
    """Hold the shapes that a configuration makes against those that lie beside it, or there behind a `prefix`."""
    found = {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items()}
    parts, owners = {key.split(".")[0] for key in state}, {key.rpartition(".")[0] for key in state}
    where, what = ", ".join(sorted({name for _, _, name in tensors.values()})), ""
    for key, shape in ((key, tuple(value.shape)) for key, value in state.items()):
        if key not in found:
            what = f"there is no {key!r}"
        elif found[key][0] not in (shape, shape[::-1] if found[key][1] == "I8" else shape):  # GPT-2's lie the other way
            where, what = found[key][2], f"{key!r} has the shape {found[key][0]} and not {shape}"
    for key in (key for key in found if key.endswith(".weight")):  # older files have buffers too
        if key.split(".")[0] in parts and key.rpartition(".")[0] not in owners:
            where, what = found[key][2], f"{key!r} is no part of it"
    if what:
        raise LacosError(
            f"The tensors in {str(root)!r} ({where}) are not those that {str(file)!r} describes: {what}. A file is "
            "damaged or of another model, or an adapter is for another base: copy the model again."
        )


def _check_stored(config: dict[str, Any], tensors: Tensors, root: Path) -> None:
    """Refuse integers that nothing says how to read."""
    for key, (_, dtype, name) in tensors.items():
        scaled = key.removesuffix("weight") + "SCB" in tensors and config.get("quantization_config") is not None
        is_state = key.endswith((".SCB", ".weight_format"))
        if dtype not in _FLOATS and not is_state and not (dtype == "I8" and scaled):
            raise LacosError(
                f"{str(root / name)!r} holds {key!r} as {dtype}, and nothing says how to read it "
                "(quantization_config in config.json, with scales beside it): copy the model again."
            )


def load_adapter(model: PreTrainedModel, source: str, name: str, places: dict[str, Any]) -> None:
    """Load an adapter into a base that it lies beside, or into a model that has some.

    Args:
        model: The base, with adapters or not; transformers would take the base that the adapter names from the Hub.
        source: A directory, or a name on the Hub.
        name: The adapter's name.
        places: `token`, `revision`, `cache_dir`, `local_files_only`, `subfolder`: where it lies.

    Raises:
        LacosError: Tensors of it are not there.
    """
    # transformers takes the adapters that are there already for part of this one, and calls them "newly initialized"
    with without("transformers.integrations.peft", "LOAD REPORT"):
        told = model.load_adapter(source, adapter_name=name, adapter_kwargs=places)
    own = re.compile(rf".*\.lora_(embedding_)?[AB]\.{re.escape(name)}(\.weight)?")  # its name may be any part of a key
    if missing := [key for key in told.missing_keys if own.fullmatch(key)]:
        raise LacosError(f"The adapter {name!r} in {source!r} lacks {missing[0]!r}: copy the model again.")
