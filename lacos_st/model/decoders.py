"""Which models can be a base, and which can be put on the fast path."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lacos_st.errors import LacosError


def check_base(config: dict[str, Any], name: str) -> None:
    """Refuse what cannot be a base.

    Args:
        config: What `config.json` says.
        name: The model's.

    Raises:
        LacosError: It is no BLOOM.
    """
    if config["model_type"] != "bloom":
        raise LacosError(
            f"{name!r} is a {config['model_type']!r} model, and LACoS needs BLOOM. Supported are "
            "bigscience/bloom-560m, -1b1, -1b7, -3b and -7b1, bloomz-*, any other checkpoint whose config.json "
            'says "model_type": "bloom", and the embedded "bloom-mini". '
            "For other models use sentence_transformers.SentenceTransformer."
        )


def check_decoder(config: dict[str, Any], name: str) -> None:
    """Refuse for the fast path what is no decoder of text.

    transformers can make a decoder of BERT and its like too; they were trained to see both sides, and
    sentence-transformers embeds with them as they are.

    Args:
        config: What `config.json` says.
        name: The model's.

    Raises:
        LacosError: An encoder, an encoder with a decoder, a model of pictures or sound, or an unknown architecture.
    """
    kind = config["model_type"]
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.get("is_encoder_decoder"):
        raise LacosError(
            f"{name!r} is a {kind!r} model, an encoder, and the fast path is for decoders (BLOOM, Llama, Qwen, Gemma, "
            "Mistral, GPT-2, ...). Encode with it as it is."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "vision_config" in config or "audio_config" in config:
        raise LacosError(
            f"{name!r} is a {kind!r} model, and the fast path is for decoders of text that transformers knows (BLOOM, "
            "Llama, Qwen, Gemma, Mistral, GPT-2, ...). Encode with it as it is."
        )
