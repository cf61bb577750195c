"""The `gguf` format: one file for llama.cpp, with the decoder in bfloat16, its tokenizer and its pooling.

Tensor names are those of the `gguf` package's public map. What is not in that map is here by family, as llama.cpp has
it: the order of rows in attention's projections (Llama's rotary halves, BLOOM's heads), Gemma's gains, stored as 1 + w,
and the settings that the family reads.

A GGUF file holds less than a sentence-transformers model. What would be lost in silence is an error: a weighted mean or
two poolings, modules after the pooling, text in the template, both-sided attention, a prompt that is left out of the
pooling, windows and rotary scalings that the family's code in llama.cpp does not know. Prompts by name are the caller's
to write, and lengths are: llama.cpp's server scales embeddings to length 1 by default.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor

from lacos_st.errors import LacosError
from lacos_st.export.gguf_vocabulary import write_vocabulary
from lacos_st.model.model import LacosSentenceTransformer

_POOLING = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST"}


def check_gguf() -> None:
    """Refuse where the package that writes the format is missing.

    Raises:
        LacosError: It is.
    """
    if find_spec("gguf") is None:
        raise LacosError("Writing a GGUF file needs the package gguf: pip install gguf.")


class Family(NamedTuple):
    """What llama.cpp wants to know of a family.

    Attributes:
        architecture: Its name there.
        describe: Writes the family's settings; raises for those that llama.cpp does not compute.
        change: Of a tensor (its name here, its values, the configuration): the values as they are stored there.
    """

    architecture: str
    describe: Callable[[Any, Any, int], None]
    change: Callable[[str, Tensor, Any], Tensor]


def write_gguf(model: LacosSentenceTransformer, file: Path) -> str:
    """Write a floating model.

    Args:
        model: As `load_floating` gives it.
        file: A new file, under the name that it will have.

    Returns:
        What is to be done with it, in words.

    Raises:
        LacosError: What the model computes cannot be said in the format.
    """
    import gguf

    transformer, config = model.transformer, model.transformer.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise LacosError(
            f"GGUF files are written of {', '.join(FAMILIES)} models, and this is a {config.model_type!r} model. "
            "--format hf holds it."
        )
    pooling = _pooling(model)
    if transformer.attention != "causal":
        raise LacosError(
            f"The model has {transformer.attention} attention, and llama.cpp computes this family causally: the "
            "embeddings would be others. --format hf holds it."
        )
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, family.architecture)
    writer.add_name(str(transformer.base["name"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    family.describe(writer, config, transformer.max_seq_length or 0)
    writer.add_pooling_type(gguf.PoolingType[_POOLING[pooling]])
    left = write_vocabulary(writer, transformer.tokenizer, transformer.template, config.vocab_size)
    for key, tensor in transformer.model.state_dict().items():
        # without a head the names lack the first part that some families have
        stored = next((n for k in (key, f"model.{key}") if (n := names.get_name(k, (".weight", ".bias")))), None)
        if stored is None:
            raise LacosError(f"The gguf package has no name for the tensor {key!r} of a {config.model_type!r} model.")
        values = family.change(key, tensor.float(), config).contiguous().numpy()
        kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.BF16
        writer.add_tensor(stored, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    told = f"Serve it: llama-server --embedding --pooling {_POOLING[pooling].lower()} -m {file.name}"
    if used := [prompt for prompt in model.prompts.values() if prompt]:
        told += f"\nllama.cpp writes no prompt: put {' or '.join(map(repr, used))} before the texts yourself."
    return f"{told}\n{left}".rstrip()


def _pooling(model: LacosSentenceTransformer) -> str:
    above = [module for module in list(model)[1:] if not isinstance(module, Pooling | Normalize)]
    more = [type(module).__name__.removeprefix("Lacos") for module in above]
    mode = model.pooling.pooling_mode
    if more:
        raise LacosError(f"A GGUF file cannot hold the model's {', '.join(more)}. --format hf does.")
    if mode not in _POOLING:
        raise LacosError(
            f"A GGUF file knows the poolings {', '.join(_POOLING)}, and this model has {mode}: train one with "
            "--pooling mean or --pooling lasttoken, or take --format hf."
        )
    return str(mode)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise LacosError(f"llama.cpp does not compute this model's {what}. --format hf holds it.")


def _common(writer: Any, config: Any, inner: int, length: int) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)


def _rotary(writer: Any, config: Any) -> None:
    """Llama and what follows it: rotary positions, RMS norms, grouped-query heads."""
    _common(writer, config, config.intermediate_size, config.max_position_embeddings)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rotary = config.rope_parameters
    rotary = rotary.get("full_attention", rotary)
    _need(rotary["rope_type"] == "default", f"rotary scaling {rotary['rope_type']!r}")
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_rope_dimension_count(size)


def _describe_rotary(writer: Any, config: Any, window: int) -> None:
    _rotary(writer, config)
    slides = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    _need(slides is None or slides >= window, f"attention window of {slides} tokens")


def _describe_gemma3(writer: Any, config: Any, window: int) -> None:
    _rotary(writer, config)
    every = [("full" if (i + 1) % 6 == 0 else "sliding") + "_attention" for i in range(config.num_hidden_layers)]
    _need(list(config.layer_types) == every, "order of layers with and without a window")
    _need(config.query_pre_attn_scalar == config.head_dim, f"query scale of {config.query_pre_attn_scalar}")
    local = config.rope_parameters["sliding_attention"]
    _need((local["rope_type"], local["rope_theta"]) == ("default", 10000.0), "rotary base of the windows")
    _need(config.attn_logit_softcapping is None, "capped attention scores")
    writer.add_sliding_window(config.sliding_window)


def _describe_bloom(writer: Any, config: Any, window: int) -> None:
    _need(not config.apply_residual_connection_post_layernorm, "residual after the norm")
    _common(writer, config, 4 * config.hidden_size, getattr(config, "seq_length", None) or window)
    writer.add_head_count_kv(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _same(key: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor


def _halves(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Rows of a head's query and key: the rotary pairs side by side, where transformers has two halves."""
    projection = next((p for p in ("q_proj", "k_proj") if p in key), None)
    if projection is None:
        return tensor
    heads = config.num_attention_heads if projection == "q_proj" else config.num_key_value_heads
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _gains(key: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor + 1 if key.endswith("norm.weight") else tensor


def _heads(key: str, tensor: Tensor, config: Any) -> Tensor:
    """BLOOM's query, key and value: all queries first, where transformers has the three of each head together."""
    if "query_key_value" not in key:
        return tensor
    return tensor.view(config.n_head, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


FAMILIES = {
    "llama": Family("llama", _describe_rotary, _halves),
    "mistral": Family("llama", _describe_rotary, _halves),
    "qwen2": Family("qwen2", _describe_rotary, _same),
    "qwen3": Family("qwen3", _describe_rotary, _same),
    "gemma3_text": Family("gemma3", _describe_gemma3, _gains),
    "bloom": Family("bloom", _describe_bloom, _heads),
}
"""Families, by transformers' names, that were read back by transformers and by llama.cpp."""
