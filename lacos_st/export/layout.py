"""The `hf` format: a directory as most software that serves sentence embeddings expects it.

    config.json, model.safetensors    a 16-bit decoder without adapter or 8-bit record
    tokenizer.json, ...               the template in its post-processor
    modules.json, 1_Pooling/, ...     sentence-transformers', by the names and keys that its first versions had

sentence-transformers reads its old names as well as its new ones; others look for the old ones alone. So it is with the
name of the tokenizer's class: transformers 4 knows only the old one of what reads `tokenizer.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.modules import Pooling

from lacos_st.files import write_json
from lacos_st.model.artifact import RECORD
from lacos_st.model.model import LacosSentenceTransformer

_POOLING = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def write_layout(model: LacosSentenceTransformer, directory: Path) -> None:
    """Write a floating model.

    Args:
        model: As `load_floating` gives it.
        directory: Where to; it must not exist, or be empty.
    """
    model.save(str(directory))
    (directory / RECORD).unlink()
    listing = directory / "modules.json"
    entries = json.loads(listing.read_text(encoding="utf-8"))
    for entry, module in zip(entries, model, strict=True):
        entry["type"] = f"sentence_transformers.models.{entry['type'].rpartition('.')[2]}"
        if isinstance(module, Pooling):
            write_json(directory / entry["path"] / "config.json", _old_pooling(module))
    write_json(listing, entries)
    settings = directory / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    # what reads tokenizer.json, since version 4
    write_json(settings, told | {"tokenizer_class": "PreTrainedTokenizerFast"})
    length = model.transformer.max_seq_length
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})


def _old_pooling(pooling: Pooling) -> dict[str, Any]:
    modes = [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
    return {
        "word_embedding_dimension": pooling.embedding_dimension,
        **{key: mode in modes for mode, key in _POOLING.items()},
        "include_prompt": pooling.include_prompt,
    }
