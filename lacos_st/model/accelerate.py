"""`accelerate`: a model of stock classes computes as ours does, with the weights and the adapters that it has."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from lacos_st.decoder.embedding_table import quantize_embedding_
from lacos_st.decoder.fast_path import accelerate_
from lacos_st.decoder.quantization import is_quantized
from lacos_st.errors import LacosError
from lacos_st.model.decoders import check_decoder


def accelerate(
    model: SentenceTransformer, compute_form: str = "auto", training_form: str = "auto"
) -> SentenceTransformer:
    """Put a SentenceTransformer that was loaded without the plugin on the fast path, in place.

    Args:
        model: A SentenceTransformer whose first module is a decoder, 8-bit or not, with adapters or not.
        compute_form: How 8-bit layers compute when encoding; see `quantization.py`.
        training_form: The same while training.

    Returns:
        The same model.

    Raises:
        LacosError: The model is no decoder.
    """
    inner = getattr(model[0], "model", None)
    if inner is None:
        raise LacosError(f"accelerate() speeds up decoders, and the first module here is {type(model[0]).__name__}.")
    check_decoder(inner.config.to_dict(), type(inner).__name__)
    if is_quantized(inner):
        quantize_embedding_(inner)
    accelerate_(inner, compute_form, training_form)
    return model
