"""What of a model stock sentence-transformers can do: the class that each of ours stands for, and what has none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling
from torch import nn

from lacos_st.model.dense import LacosDense, LacosLayerNorm
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer

STOCK = {LacosTransformer: Transformer, LacosDense: Dense, LacosPooling: Pooling, LacosLayerNorm: LayerNorm}
OURS: dict[type, type[nn.Module]] = {stock: ours for ours, stock in STOCK.items() if stock is not Transformer}


def fullname(cls: type) -> str:
    """A class as `modules.json` names it; one of ours by its public name, which no move of a file changes."""
    return f"{'lacos_st' if cls in STOCK else cls.__module__}.{cls.__name__}"


def names_of(cls: type) -> list[str]:
    """Names under which `modules.json` may have one of our classes: as today, by its file, and by that of before."""
    return [
        fullname(cls),
        f"{cls.__module__}.{cls.__name__}",
        f"lacos_st.{cls.__module__.split('.')[-1]}.{cls.__name__}",
    ]


def inexpressible(modules: Sequence[nn.Module]) -> list[str]:
    """What a model of these modules does that stock classes cannot, in words; empty where they read it."""
    transformer = modules[0]
    assert isinstance(transformer, LacosTransformer)
    attention = transformer.attention
    # what the config.json that stock classes read says: ours, or by reference the base's own
    told = attention if transformer.save_base else transformer.base_attention
    found = {
        "symmetric attention": attention == "symmetric",
        f"{attention} attention over a base that is {told}": attention not in ("symmetric", told),
        "include_prompt=False": any(isinstance(m, Pooling) and not m.include_prompt for m in modules),
    }
    return [words for words, there in found.items() if there]


def name_stock_classes(modules: Sequence[nn.Module], stage: Path) -> None:
    """Let a staged model's `modules.json` name stock classes, or warn that they do not do the same."""
    listing = stage / "modules.json"
    entries = json.loads(listing.read_text(encoding="utf-8"))
    if missing := inexpressible(modules):
        warnings.warn(
            f"Stock sentence-transformers cannot express {' and '.join(missing)}: the saved model names lacos_st's "
            "classes, and loads with lacos_st.LacosSentenceTransformer only.",
            stacklevel=4,
        )
    for module, entry in zip(modules, entries, strict=True):
        stock = STOCK.get(type(module))
        if stock is not None:
            entry["type"] = fullname(type(module) if missing else stock)
        if entry["path"] and not missing:
            name = f"{entry['idx']}_{(stock or type(module)).__name__}"
            (stage / entry["path"]).rename(stage / name)
            entry["path"] = name
    listing.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
