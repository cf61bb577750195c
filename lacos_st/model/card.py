"""What a saved model says of itself: the LACoS part of its card, and `lacos-st info`.

sentence-transformers writes the card's training data, losses and citations. `fill_in` tells it what is known of the
base; `complete` adds what it does not know: 8 bits, the adapter, the recipe, what training took and brought, how to
load the model with and without this package, and what stock classes would break. A card that came with a model stays as
it is, but for what has changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from lacos_st.model.artifact import is_hub_name
from lacos_st.model.frozen import base_dtype
from lacos_st.model.stock import inexpressible
from lacos_st.model.transformer import LacosTransformer

_HEADING = "## 8-bit LoRA"
_SECTION = re.compile(rf"^{_HEADING}$.*?(?=\s*^## |\s*\Z)", re.DOTALL | re.MULTILINE)
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_LOADED = re.compile(r'(SentenceTransformer\(")([^"\n]*)("\))')
_UNKNOWN_BASE = "<!-- - **Base model:** [Unknown](https://huggingface.co/unknown) -->"


def describe(modules: Sequence[nn.Module], dimension: int | None) -> dict[str, Any]:
    """What a model is made of.

    Args:
        modules: Its modules, a `LacosTransformer` first.
        dimension: Of its embeddings.

    Returns:
        Name -> value, in reading order; sizes in parameters and in bytes as they lie in memory.
    """
    transformer, *above = modules
    assert isinstance(transformer, LacosTransformer)
    config, dtype = transformer.config, base_dtype(transformer.model)
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    adapters = {name: transformer.model.peft_config[name] for name in transformer.adapter_names}
    adapter_size = sum(p.numel() for key, p in transformer.named_parameters() if "lora_" in key)
    return {
        "base": transformer.base["name"],
        "licence": _licence(transformer.base),
        "blocks": f"{config.num_hidden_layers} x {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.vocab_size:,} tokens",
        "parameters": f"{sum(t.numel() for t in tensors):,}, of them {adapter_size:,} in adapters",
        "in memory": f"{sum(t.numel() * t.element_size() for t in tensors) / 2**20:,.1f} MiB",
        "weights": "8 bits, frozen" if transformer.quantization == "int8" else str(dtype),
        "compute": f"{transformer.compute_form} to encode, {transformer.training_form} to train, "
        f"{str(dtype).removeprefix('torch.')} activations",
        "adapters": ", ".join(f"{name} (rank {c.r}, {_targets(c.target_modules)})" for name, c in adapters.items())
        or "none",
        "template": transformer.template,
        "pooling": next((module.pooling_mode for module in above if isinstance(module, Pooling)), None)
        or ", ".join(type(module).__name__ for module in above),
        "max_seq_length": transformer.max_seq_length,
        "dimension": dimension,
    }


def _targets(modules: str | Iterable[str]) -> str:
    """PEFT keeps layer names as a set, whole or their ends, or one regular expression."""
    return modules if isinstance(modules, str) else "+".join(sorted({name.rpartition(".")[2] for name in modules}))


def _licence(base: dict[str, str | None]) -> str:
    """Of the base, with what a company has to know of it."""
    licence = base.get("license") or "not told by the base"
    licence += f", {base['license_link']}" if base.get("license_link") else ""
    sources = base.get("non_commercial_sources")
    return f"{licence}; learnt from non-commercial sources too: {sources}" if sources else licence


def fill_in(data: SentenceTransformerModelCardData, base: dict[str, str | None], record: dict[str, Any] | None) -> None:
    """Tell ST's card data what is known of the base and of the data, where the user has not.

    Args:
        data: ST's.
        base: What `LacosTransformer.base` says.
        record: Of training by `train`.
    """
    data.license = data.license or base.get("license")
    if not data.language and (languages := base.get("language")):
        data.set_language(languages.split(", "))
    if is_hub_name(base["name"]):
        data.base_model, data.base_model_revision = base["name"], base["revision"]
    data.first_save = False  # else ST would ask the Hub for models that are named like parts of a local path
    sources = record["recipe"]["train_data"] if record else []
    names = [source.partition(":")[0] for source in sources]
    data.datasets += [name for name in names if is_hub_name(name) and name not in data.datasets]


def section(modules: Sequence[nn.Module], dimension: int | None, name: str) -> str:
    """What the model is and how it is loaded: the Markdown at the head of its card.

    Args:
        modules: The model's.
        dimension: Of its embeddings.
        name: The name under which users load it.

    Returns:
        Markdown.
    """
    missing = inexpressible(modules)
    transformer = modules[0]
    assert isinstance(transformer, LacosTransformer)
    wants = ["bitsandbytes"] * (transformer.quantization == "int8") + ["peft"] * bool(transformer.adapter_names)
    needs = f"needs {' and '.join(wants)}, not lacos-st" if wants else "without lacos-st"
    stock = [
        f"from sentence_transformers import SentenceTransformer  # {needs}",
        f'model = SentenceTransformer("{name}")',
        "",
    ]
    return "\n".join(
        [
            _HEADING,
            "",
            "Trained with LACoS (arXiv 2305.06404): a frozen 8-bit base, a low-rank adapter, a contrastive objective.",
            "",
            "| | |",
            "|---|---|",
            *(
                f"| {key} | {str(value).replace('|', chr(92) + '|')} |"
                for key, value in describe(modules, dimension).items()
            ),
            "",
            "```python",
            *([] if missing else stock),
            "from lacos_st import LacosSentenceTransformer"
            + ("" if missing else "  # the same model, faster and smaller"),
            f'model = LacosSentenceTransformer("{name}")  # is_trainable=True to go on training',
            "```",
            "",
            f"Stock sentence-transformers cannot express its {' and '.join(missing)}, and does not load it."
            if missing
            else _stock_says(modules[0]),
        ]
    )


def _stock_says(transformer: nn.Module) -> str:
    """What stock classes do with a saved model, and what they break."""
    assert isinstance(transformer, LacosTransformer)
    if transformer.adapter_names and transformer.save_base:
        upload = (
            " To upload it as files save it with `model_name=` as its name on the Hub, or use `push_to_hub`: stock "
            "classes find the base there by that name."
        )
        return (
            "Stock sentence-transformers encodes with it. Save it again with lacos-st only: stock classes write the "
            f"adapter without its base, and that cannot be loaded.{'' if transformer.hub_name else upload}"
        )
    if transformer.adapter_names and not transformer.is_base_on_hub:
        return (
            "Its base lies in a directory of the machine that it was saved on: nobody else can load it. To pass it on "
            "save it with `self_contained=True`."
        )
    if transformer.adapter_names:
        return (
            "Stock sentence-transformers encodes with it. Saved again by stock classes it loads its base in full "
            "precision, for they do not write its 8-bit settings."
            if transformer.quantization == "int8"
            else "Stock sentence-transformers encodes with it and saves it."
        )
    if transformer.quantization == "int8":
        return (
            "Stock sentence-transformers encodes with it. It cannot save it: transformers does not write weights that "
            "it has read in 8 bits, and raises NotImplementedError."
        )
    return "Stock sentence-transformers encodes with it, trains it and saves it."


def training_section(record: dict[str, Any]) -> str:
    """What training by `train` took and brought, as Markdown."""
    processes = record.get("processes", 1)
    each = f"{processes} processes, each on " if processes > 1 else ""
    own = record.get("held_out") or {"before": {}}  # an older record has none
    return "\n".join(
        [
            "## LACoS training",
            "",
            f"{record['steps']} steps over {record['rows']:,} rows in {record['seconds']:,} s on "
            f"{each}{record['device']}, peak memory {record['peak_bytes'] / 2**30:.1f} GiB; the best step was "
            f"{record['best_step']}.",
            "",
            f"Data: {', '.join(record['recipe']['train_data']) or 'the samples that come with lacos-st'}. "
            "The licences of the base and of the data apply to the model.",
            "",
            *(_held_out(own) if own["before"] else []),
            "| STS17 (Spearman x 100) | before | after |",
            "|---|---|---|",
            *(
                f"| {pair} | {before:.2f} | {record['scores_after'][pair]:.2f} |"
                for pair, before in record["scores_before"].items()
            ),
            "",
            "<details><summary>Recipe</summary>",
            "",
            "```yaml",
            yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True).rstrip(),
            "```",
            "",
            "</details>",
        ]
    )


def held_out_rows(own: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What training brought on the held-out rows: metric, before, after, as texts.

    Args:
        own: Of the record of training: "before" and "after", with the loss and scores x 100.

    Example:
        >>> held_out_rows({"before": {"accuracy@1": 41.0, "loss": 1.2}, "after": {"accuracy@1": 62.5, "loss": 0.5}})
        [('accuracy@1 x 100', '41.00', '62.50'), ('loss', '1.2000', '0.5000')]
    """
    rows = []
    for name, before in own["before"].items():
        label, digits = (name, 4) if name == "loss" else (f"{name} x 100", 2)
        rows.append((label, f"{before:.{digits}f}", f"{own['after'][name]:.{digits}f}"))
    return rows


def _held_out(own: dict[str, Any]) -> list[str]:
    """The same as a table."""
    asked = f", {own['queries']:,} queries among {own['texts']:,} texts" if own["queries"] else ""
    rows = [f"| {' | '.join(row)} |" for row in held_out_rows(own)]
    return [f"| held-out rows{asked} | before | after |", "|---|---|---|", *rows, ""]


def complete(
    card: str, modules: Sequence[nn.Module], dimension: int | None, record: dict[str, Any] | None, directory: str
) -> str:
    """Put our sections into a card that ST has made or that came with the model, before its first such heading.

    Args:
        card: Markdown.
        modules: The model's.
        dimension: Of its embeddings.
        record: Of training by `train`.
        directory: Name of the directory that it is saved to, by which it is loaded unless it has a name on the Hub.

    Returns:
        Markdown; the same if it says all of this already.
    """
    transformer = modules[0]
    assert isinstance(transformer, LacosTransformer)
    named = transformer.hub_name
    there = _SECTION.search(card)
    if there is None:
        sections = [section(modules, dimension, named or directory)]
        if record:
            sections.append(training_section(record))
        head, found, rest = card.partition("\n## ")
        card = "\n\n".join([head.rstrip(), *sections, found.lstrip() + rest])
    else:
        before = _LOADED.search(there[0])
        if before is None or section(modules, dimension, before[2]) != there[0]:
            card = card.replace(there[0], section(modules, dimension, named or directory))
    sources, front = transformer.base.get("non_commercial_sources"), _FRONT.match(card)
    if sources and front and "\nnon_commercial_sources:" not in front[0]:  # ST's card data have no field for it
        line = yaml.safe_dump({"non_commercial_sources": sources}, allow_unicode=True)
        card = f"{card[: front.end(1)]}{line}{card[front.end(1) :]}"
    card = card.replace(_UNKNOWN_BASE, f"- **Base model:** {transformer.base['name']}")
    return _LOADED.sub(lambda found: f"{found[1]}{named}{found[3]}", card) if named else card
