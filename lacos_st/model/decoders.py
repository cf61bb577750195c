"""Which models can be a base and be put on the fast path: decoders of text that transformers knows."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lacos_st.errors import LacosError


def check_decoder(config: dict[str, Any], name: str) -> None:
    """Refuse what is no decoder of text.

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
            f"{name!r} is a {kind!r} model, an encoder, and LACoS adapts decoders (BLOOM, Llama, Qwen, Gemma, Mistral, "
            "GPT-2, ...). Use it as it is: sentence_transformers.SentenceTransformer."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "vision_config" in config or "audio_config" in config:
        raise LacosError(
            f"{name!r} is a {kind!r} model, and LACoS adapts decoders of text that transformers knows (BLOOM, Llama, "
            "Qwen, Gemma, Mistral, GPT-2, ...). Use it as it is: sentence_transformers.SentenceTransformer."
        )
