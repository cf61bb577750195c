"""What of a model stock sentence-transformers can do: the class that each of ours stands for, and what has none."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling
from torch import nn

from lacos_st.model.dense import LacosDense, LacosLayerNorm
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer

if TYPE_CHECKING:
    from lacos_st.model.model import LacosSentenceTransformer

STOCK = {LacosTransformer: Transformer, LacosDense: Dense, LacosPooling: Pooling, LacosLayerNorm: LayerNorm}
OURS: dict[type, type[nn.Module]] = {Dense: LacosDense, LayerNorm: LacosLayerNorm, Pooling: LacosPooling}


def fullname(cls: type) -> str:
    """A class as `modules.json` names it."""
    return f"{cls.__module__}.{cls.__name__}"


def inexpressible(model: LacosSentenceTransformer) -> list[str]:
    """What a model does that stock classes cannot, in words; empty where they read it."""
    transformer = model.transformer
    attention = transformer.attention
    # what the config.json that stock classes read says: ours, or by reference the base's own
    told = attention if transformer.save_base else transformer.base_attention
    found = {
        "symmetric attention": attention == "symmetric",
        f"{attention} attention over a base that is {told}": attention not in ("symmetric", told),
        "include_prompt=False": any(isinstance(m, Pooling) and not m.include_prompt for m in model),
    }
    return [words for words, there in found.items() if there]


def name_stock_classes(model: LacosSentenceTransformer, stage: Path) -> None:
    """Let a staged model's `modules.json` name stock classes, or warn that they do not do the same."""
    listing = stage / "modules.json"
    modules = json.loads(listing.read_text(encoding="utf-8"))
    if missing := inexpressible(model):
        warnings.warn(
            f"Stock sentence-transformers cannot express {' and '.join(missing)}: the saved model names lacos_st's "
            "classes, and loads with lacos_st.LacosSentenceTransformer only.",
            stacklevel=4,
        )
        return
    for module, entry in zip(model, modules, strict=True):
        stock = STOCK.get(type(module))
        if stock is not None:
            entry["type"] = fullname(stock)
        if entry["path"]:
            name = f"{entry['idx']}_{(stock or type(module)).__name__}"
            (stage / entry["path"]).rename(stage / name)
            entry["path"] = name
    listing.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
