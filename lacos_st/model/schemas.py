"""What the JSON files of a model's directory may say: their types, and no key that lets a host library load code.

A directory comes from elsewhere: it may be damaged, of another version, or made to do harm. What it says is checked
here; what a user passes in code is the user's word and is not. `opening.py` says where. (The types are read while the
program runs: no `from __future__ import annotations` here.)
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers import BitsAndBytesConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from lacos_st.errors import LacosError
from lacos_st.model.artifact import RECORD

MOST_LAYERS = 1_000  # the deepest decoders have under 150; each takes time even where it takes no memory


class _Record(TypedDict, total=False):
    """`lacos.json`."""

    quantization: Literal["int8", "none"]
    compute_form: Literal["auto", "w8a8", "w8a16", "bnb"]
    training_form: Literal["auto", "w8a8", "w8a16", "bnb"]
    attention: Literal["causal", "bidirectional", "symmetric"] | None
    template: str
    adapters: list[str]
    frozen_modules: list[str]
    lexical: bool  # of directories that were saved with a sketch of words
    base: dict[str, str | None]


class _Settings(TypedDict, total=False):
    """`sentence_bert_config.json`, of this and of older versions of sentence-transformers."""

    transformer_task: Literal["feature-extraction"]
    modality_config: dict[Any, dict[str, Any]]
    module_output_name: str
    processing_kwargs: dict[str, Any]
    unpad_inputs: bool | None
    query_length: int | None
    document_length: int | None
    query_expansion: dict[str, Any] | None
    max_seq_length: int | None
    do_lower_case: bool
    model_kwargs: dict[str, Any]
    processor_kwargs: dict[str, Any]
    config_kwargs: dict[str, Any]
    model_args: dict[str, Any]
    tokenizer_args: dict[str, Any]
    config_args: dict[str, Any]


class _Modality(TypedDict, total=False):
    """How one kind of input is read."""

    method: Required[str]
    method_output_name: Required[str | list[str] | None]


class _ModelKwargs(TypedDict, total=False):
    """What a directory may say to `from_pretrained` of a model: nothing that names code or another place."""

    adapter_kwargs: dict[Literal["subfolder"], str]
    attn_implementation: Literal["eager", "sdpa"] | None
    dtype: str | None
    torch_dtype: str | None
    low_cpu_mem_usage: bool
    quantization_config: dict[str, Any]


class _ProcessorKwargs(TypedDict, total=False):
    """The same of a tokenizer."""

    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    model_max_length: int
    max_length: int
    use_fast: bool
    add_prefix_space: bool
    clean_up_tokenization_spaces: bool
    do_lower_case: bool


class _ConfigKwargs(TypedDict, total=False):
    """The same of a configuration, over `config.json`."""

    is_causal: bool
    use_cache: bool
    hidden_dropout: float | int
    attention_dropout: float | int


class Entry(TypedDict, total=False):
    """One of `modules.json`."""

    idx: int
    name: Required[str]
    path: Required[str]
    type: Required[str]
    kwargs: list[str]


class Model(TypedDict, total=False):
    """`config_sentence_transformers.json`."""

    __version__: dict[str, str | None]
    model_type: str
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: Literal["cosine", "dot", "euclidean", "manhattan"] | None
    truncate_dim: int | None


class Tokenizer(TypedDict, total=False):
    """`tokenizer_config.json`."""

    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    model_max_length: int | float
    tokenizer_class: str | None
    lacos_template: str


@contextmanager
def checking(file: str | Path) -> Iterator[None]:
    """Let what a host library says of a file's content be an error of ours with the file's name."""
    try:
        yield
    except (LacosError, MemoryError):
        raise
    except Exception as error:  # each library has its own; nothing but this file is looked at
        reason = " ".join(str(error).split())
        raise LacosError(
            f"{str(file)!r} does not describe a model that can be loaded: {reason or type(error).__name__}. Copy the "
            "model again, or write it anew."
        ) from error


def typed(value: Any, schema: type, file: str | Path, known_only: bool = True) -> Any:
    """A JSON object, checked against a `TypedDict`."""
    if not isinstance(value, dict):
        raise LacosError(f"{str(file)!r} must hold a JSON object, and holds {type(value).__name__}.")
    unknown = sorted(set(value) - set(schema.__annotations__)) if known_only else []
    if unknown:
        raise LacosError(
            f"{str(file)!r} sets {unknown[0]!r}, which a model's directory cannot: remove it there. What is to be "
            "passed to transformers can be given in code (model_kwargs, processor_kwargs, config_kwargs); a file of a "
            "newer version needs that version."
        )
    try:
        validate_typed_dict(schema, {key: value[key] for key in value if key in schema.__annotations__})
    except StrictDataclassError as error:
        reason = str(error.__cause__ or error)
        raise LacosError(f"{str(file)!r} has a value of another kind than expected: {reason}.") from error
    return value


def inside(path: str, file: Path, what: str) -> str:
    """A path in a directory, refused where it leads out of it."""
    if Path(path).is_absolute() or "\\" in path or ".." in Path(path).parts:
        raise LacosError(f"{str(file)!r} gives {path!r} as {what}: it must lie in the model's directory.")
    return path


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON object and of all objects in it."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from _entries(inner)


def check_layers(value: Any, file: Path) -> None:
    """Refuse numbers of layers that would take for ever, in any JSON object and those in it."""
    for key, number in _entries(value):
        counts = key in ("n_layer", "num_layers", "num_hidden_layers", "num_experts", "num_local_experts")
        if counts and isinstance(number, int | float) and not 0 <= number <= MOST_LAYERS:
            raise LacosError(
                f"{str(file)!r} says {key}: {number:,}, and no model has more than {MOST_LAYERS:,} layers."
            )


def check_attention(config: dict[str, Any], file: Path) -> None:
    """Refuse an implementation of attention in a configuration, or in one that lies in it: its name can load code."""
    for key, value in _entries(config):
        if key.endswith(("attn_implementation", "attn_implementation_internal")) and value not in (None, "eager"):
            raise LacosError(
                f"{str(file)!r} says {key}: {value!r}, which can load code from elsewhere: take that line out. An "
                "implementation of attention is chosen in code."
            )


def check_record(record: dict[str, Any], where: str) -> None:
    """Check `lacos.json`.

    Args:
        record: What it says.
        where: The model's directory or name.

    Raises:
        LacosError: An unknown key, a value of another type, or a name that leads elsewhere.
    """
    file = Path(where) / RECORD
    typed(record, _Record, file)
    if record.get("lexical"):
        warnings.warn(
            f"{where!r} was saved with a sketch of words (lexical/), which is no longer read: its embeddings are now "
            "those that stock sentence-transformers gives and have fewer numbers (512 in place of 1,024 for the "
            "embedded model). Encode stored texts anew before you compare them with new ones.",
            stacklevel=2,
        )
    for name in record.get("adapters", []):
        if not name or name.startswith(".") or "/" in inside(name, file, "an adapter"):
            raise LacosError(f"{str(file)!r} gives {name!r} as an adapter, which is no name of a folder.")
    if (record.get("template") or "{text}").count("{text}") != 1:
        raise LacosError(f"{str(file)!r}: the template {record['template']!r} must contain {{text}} exactly once.")
    if record and "name" not in record.get("base", {"name": ""}):
        raise LacosError(f"{str(file)!r} does not name its base.")


def check_settings(settings: dict[str, Any], where: str) -> None:
    """Check `sentence_bert_config.json`, whose values sentence-transformers passes on to transformers.

    Args:
        settings: What it says.
        where: The model's directory or name.

    Raises:
        LacosError: An unknown key, a value of another type, or one that could load code.
    """
    file = Path(where) / "sentence_bert_config.json"
    typed(settings, _Settings, file)
    for old, new, schema in (
        ("model_args", "model_kwargs", _ModelKwargs),
        ("tokenizer_args", "processor_kwargs", _ProcessorKwargs),
        ("config_args", "config_kwargs", _ConfigKwargs),
    ):
        for key in (old, new):
            typed(settings.get(key, {}), schema, f"{file}: {key}")
    kwargs = {**settings.get("model_args", {}), **settings.get("model_kwargs", {})}
    inside(kwargs.get("adapter_kwargs", {}).get("subfolder", ""), file, "the adapter's folder")
    check_dtype(kwargs.get("dtype") or kwargs.get("torch_dtype"), file)
    check_quantization(kwargs.get("quantization_config"), str(file))
    for params in settings.get("modality_config", {}).values():
        typed(params, _Modality, f"{file}: modality_config", known_only=False)


def check_dtype(dtype: Any, file: Path) -> None:
    """Refuse what is no floating-point type of torch."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and dtype != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise LacosError(f"{str(file)!r} says dtype: {dtype!r}, which is no floating-point type of torch.")


def check_backend(backend: str) -> None:
    """Refuse what sentence-transformers can compute with and this package cannot.

    Raises:
        LacosError: It is not torch.
    """
    if backend != "torch":
        raise LacosError(
            f"backend={backend!r} is not supported: 8-bit layers and adapters compute with torch. Leave it out, or "
            "load with sentence_transformers.SentenceTransformer."
        )


def check_device_map(device_map: Any) -> None:
    """Refuse a placement on GPUs that this machine has not.

    Args:
        device_map: As for transformers: a device, or the device of each part.

    Raises:
        LacosError: It names a GPU, and torch sees none.
    """
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    named = any(type(place) is int or str(place).startswith("cuda") for place in places)
    if named and not torch.cuda.is_available():
        raise LacosError(
            f"device_map={device_map!r} asks for a GPU, and torch {torch.__version__} sees none: leave it out to "
            "compute on the CPU."
        )


def check_quantization(config: Any, where: str) -> None:
    """Refuse quantisation that LACoS does not load.

    Args:
        config: transformers' configuration of it, an object or as JSON; None for full precision.
        where: What says so.

    Raises:
        LacosError: It is not 8 bits of bitsandbytes.
    """
    if config is None:
        return
    if not isinstance(config, dict | QuantizationConfigMixin):
        raise LacosError(f"{where!r} says quantization_config: {str(config)[:40]}, which is none.")
    told = config if isinstance(config, dict) else config.to_dict()
    method = told.get("quant_method", "bitsandbytes")
    method = getattr(method, "value", method)
    if method != "bitsandbytes" or told.get("load_in_8bit") is not True or told.get("load_in_4bit"):
        bits = " in 4 bits" if told.get("load_in_4bit") else ""
        raise LacosError(
            f"{where!r} asks for the quantization method {method!r}{bits}, and LACoS loads full precision or 8 bits of "
            "bitsandbytes (load_in_8bit): load the checkpoint in full precision, which is quantised to 8 bits then."
        )
    with checking(where):
        BitsAndBytesConfig.from_dict({key: value for key, value in told.items() if key != "quant_method"})
