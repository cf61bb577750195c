"""Small random decoders of many families, on disk as the Hub has them, with a tokenizer of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 512
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 128, **_IDS,
}  # fmt: skip
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_GEMMA = {**_SIZE, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}

# What they have between them: grouped-query heads, windows shorter than a text, capped scores, learned positions, fused
# projections, tied and scaled tables, norms of queries and keys, layers side by side.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=16),
    "gemma2": Gemma2Config(**{**_GEMMA, "num_key_value_heads": 2}),
    "gemma3": Gemma3TextConfig(**_GEMMA),
    "mistral": MistralConfig(**_GROUPED, sliding_window=6),
    "phi": PhiConfig(**_SIZE),
    "phi3": Phi3Config(**_GROUPED, sliding_window=5),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=128, **_IDS),
    "gpt_neox": GPTNeoXConfig(**_SIZE),
    "opt": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=64, **_IDS,
    ),
    "falcon": FalconConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        new_decoder_architecture=True, num_kv_heads=2, **_IDS,
    ),
}  # fmt: skip
PADDED = {"falcon"}  # attention does not go through transformers' interface


def config_of(family: str, both_sides: bool = False) -> PreTrainedConfig:
    """A family's configuration, by itself: models write into theirs."""
    config = copy.deepcopy(CONFIGS[family])
    if both_sides:
        config.is_causal = False
    return config


def make(family: str, both_sides: bool = False) -> Any:
    """A random fp32 model, its weights wide enough that attention differs from an average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config_of(family, both_sides)).float().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.12)
    return model


def write(family: str, tokenizer_from: Path, directory: Path) -> Path:
    """A family's model in a directory, with the tokenizer of another."""
    make(family).save_pretrained(directory)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (directory / name).write_bytes((tokenizer_from / name).read_bytes())
    text = (tokenizer_from / "tokenizer_config.json").read_text(encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        text.replace("BloomTokenizerFast", "PreTrainedTokenizerFast"), encoding="utf-8"
    )
    return directory
