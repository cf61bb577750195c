"""What a saved model says of itself: the LACoS part of its card, and `lacos-st info`.

sentence-transformers writes the card's metadata, training data, losses and citations; `section` adds what it does
not know: 8 bits, the adapter, the recipe, what training took and brought, and how to load the model with and
without this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from lacos_st.model import LacosSentenceTransformer


def describe(model: LacosSentenceTransformer) -> dict[str, Any]:
    """What a model is made of.

    Args:
        model: The model.

    Returns:
        Name -> value, in reading order; sizes in parameters and in bytes as they lie in memory.
    """
    transformer = model.transformer
    config = transformer.config
    tensors = [*model.parameters(), *model.buffers()]
    adapters = {name: transformer.model.peft_config[name] for name in transformer.adapter_names}
    adapter_size = sum(p.numel() for key, p in model.named_parameters() if "lora_" in key)
    return {
        "base": transformer.base["name"],
        "blocks": f"{config.n_layer} x {config.hidden_size}, {config.n_head} heads, {config.vocab_size:,} tokens",
        "parameters": f"{sum(t.numel() for t in tensors):,}, of them {adapter_size:,} in adapters",
        "in memory": f"{sum(t.numel() * t.element_size() for t in tensors) / 2**20:,.1f} MiB",
        "weights": "8 bits, frozen" if transformer.quantization == "int8" else str(transformer.model.dtype),
        "compute": f"{transformer.compute_form} to encode, {transformer.training_form} to train, "
        f"{str(transformer.model.dtype).removeprefix('torch.')} activations",
        "adapters": ", ".join(f"{name} (rank {c.r}, {_targets(c.target_modules)})" for name, c in adapters.items())
        or "none",
        "template": transformer.template,
        "pooling": model.pooling.pooling_mode,
        "max_seq_length": model.max_seq_length,
        "dimension": model.get_embedding_dimension(),
    }


def _targets(modules: str | Iterable[str]) -> str:
    """PEFT keeps layer names as a set, or one regular expression."""
    return modules if isinstance(modules, str) else "+".join(sorted(modules))


def section(model: LacosSentenceTransformer, name: str) -> str:
    """The Markdown that `LacosSentenceTransformer` puts at the head of a model card.

    Args:
        model: The model; `training_record` tells of its training if it was trained by `train`.
        name: The name under which users load it.

    Returns:
        Markdown.
    """
    lines = [
        "## 8-bit LoRA BLOOM",
        "",
        "Trained with LACoS (arXiv 2305.06404): frozen 8-bit BLOOM, a low-rank adapter, a contrastive objective.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in describe(model).items()),
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer  # needs bitsandbytes and peft, not lacos-st",
        f'model = SentenceTransformer("{name}")',
        "",
        "from lacos_st import LacosSentenceTransformer  # the same model, faster and smaller",
        f'model = LacosSentenceTransformer("{name}")  # is_trainable=True to go on training',
        "```",
        "",
        "Stock sentence-transformers encodes with it. To train it further or to save it again use lacos-st: the stock "
        "classes would lose its 8-bit settings.",
        "",
    ]
    record = getattr(model, "training_record", None)
    if record:
        lines += [
            f"Training: {record['steps']} steps over {record['rows']:,} rows in {record['seconds']:,} s on "
            f"{record['device']}, peak memory {record['peak_bytes'] / 2**30:.1f} GiB; the best step was "
            f"{record['best_step']}.",
            "",
            f"Data: {', '.join(record['recipe']['train_data']) or 'the samples that come with lacos-st'}. "
            "The licences of the base and of the data apply to the model.",
            "",
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
            "",
        ]
    return "\n".join(lines)


def insert(card: str, text: str) -> str:
    """Put a section before the first second-level heading of a card."""
    head, found, rest = card.partition("\n## ")
    return f"{head}\n\n{text}{found}{rest}" if found else f"{card}\n\n{text}"
