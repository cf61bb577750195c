"""The fast path of a loaded decoder: packed tokens, and the form in which its 8-bit layers compute.

BLOOM has a forward pass of its own (`bloom.py`), any other decoder transformers' over packed tokens (`generic.py`).
"""

from __future__ import annotations

import torch
from transformers import BloomModel, PreTrainedModel

from lacos_st.decoder.attention import attention_mode
from lacos_st.decoder.bloom import OUTLIER_RATIO, outlier_ratio, use_packed_blocks_
from lacos_st.decoder.fused import fuse_
from lacos_st.decoder.generic import pack_
from lacos_st.decoder.lora import fuse_lora_
from lacos_st.decoder.outliers import keep_outliers_, probe
from lacos_st.decoder.quantization import ComputeForm, convert_linear_, resolve_compute_form
from lacos_st.decoder.threads import survive_forks
from lacos_st.errors import LacosError


def form_for(model: PreTrainedModel, form: str, device: torch.device | str, training: bool) -> ComputeForm:
    """`resolve_compute_form` for a model's weights.

    ``auto`` is ``w8a16`` where a BLOOM has outlier channels; other decoders keep theirs out of the rounding.

    Args:
        model: The model.
        form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``.
        device: Where it runs.
        training: Whether the form is for training steps.

    Returns:
        The form.

    Raises:
        LacosError: If ``form`` is none of them.
    """
    outliers = form == "auto" and isinstance(model, BloomModel) and outlier_ratio(model) > OUTLIER_RATIO
    return resolve_compute_form("w8a16" if outliers else form, device, training)


def accelerate_(model: PreTrainedModel, compute_form: str = "auto", training_form: str = "auto") -> PreTrainedModel:
    """Put a loaded decoder on the fast path, in place: parameters, adapters and hooks stay.

    Args:
        model: Quantised (bitsandbytes int8) or not, with or without PEFT adapters injected.
        compute_form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``: the 8-bit layers' product in ``eval()`` mode.
            ``auto`` is `form_for`'s choice.
        training_form: The same in ``train()`` mode.

    Returns:
        ``model``. Calling it again changes the forms only.

    Raises:
        LacosError: No model of transformers, a form that does not exist, or symmetric attention without ALiBi.
    """
    if not isinstance(model, PreTrainedModel):
        raise LacosError(f"{type(model).__name__} is no decoder: only transformers' models have a fast path.")
    survive_forks()
    if isinstance(model, BloomModel):
        use_packed_blocks_(model)
    elif attention_mode(model.config) == "symmetric":
        raise LacosError(
            "Symmetric attention is a bias that BLOOM has. To let a decoder see both sides use 'bidirectional'."
        )
    else:
        pack_(model)
    converted = convert_linear_(
        model,
        form_for(model, compute_form, model.device, training=False),
        form_for(model, training_form, model.device, training=True),
    )
    fuse_lora_(model)
    if converted and model.device.type == "cpu":
        # What stays in float still lies in the mapped checkpoint file, and one such tensor keeps all of it resident.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
    if converted and not isinstance(model, BloomModel):
        tokens = probe(model.config.get_text_config())
        inputs = keep_outliers_(model, tokens, lambda ids: model(ids.to(model.device)))
        if inputs is not None and model.device.type == "cpu":
            fuse_(model, inputs)
    return model
