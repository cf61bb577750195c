"""The frozen base: what never trains, and what keeps a reload from touching it.

A base in 8 bits, or under adapters, is frozen as a whole. Its state is then no part of what a run learns: a checkpoint
does without it, and `load_state_dict` (best model, resume) takes the trained part and leaves the base alone. Stock
PyTorch would cast floats into the int8 weights, or set them to zero, in silence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lacos_st.decoder.embedding_table import quantize_embedding_


def is_trained(key: str) -> bool:
    """Whether a parameter is an adapter's; all others are the frozen base's."""
    return "lora_" in key or "modules_to_save" in key


def base_dtype(model: PreTrainedModel) -> torch.dtype:
    """Dtype of what a base computes in: of its floating parameters, not of the adapters over it."""
    found = (p.dtype for name, p in model.named_parameters() if p.is_floating_point() and not is_trained(name))
    return next(found, model.dtype)


def freeze_(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Freeze a quantised base, in place: its table in 8 bits as well, what stays floating in one dtype.

    Args:
        model: A decoder with 8-bit linear layers, with or without adapters.
        dtype: Of layer norms, biases and looked-up embeddings.
    """
    model.requires_grad_(False)  # else embeddings, norms and biases would train in silence
    quantize_embedding_(model, dtype)
    for name, parameter in model.named_parameters():  # norms and biases come as stored
        if parameter.is_floating_point() and not is_trained(name):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def keep_frozen_(module: nn.Module) -> None:
    """Let `module.load_state_dict` load the trained part alone, and miss nothing else, while its base is frozen.

    Args:
        module: Holds a base somewhere below it. Its `is_base_frozen`, if it has that, says whether the base is.
    """
    hooks = _TrainedPart()
    module.register_load_state_dict_pre_hook(hooks.drop_base)
    module.register_load_state_dict_post_hook(hooks.expect_trained)


class _TrainedPart:
    """The two hooks; a class, as a model goes to other processes pickled and closures do not."""

    prefix = ""  # of the module's keys in the state dict that is being loaded

    def drop_base(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.prefix = prefix
        for key in list(state_dict) if getattr(module, "is_base_frozen", True) else []:
            if key.startswith(prefix) and not is_trained(key):
                del state_dict[key]

    def expect_trained(self, module: nn.Module, incompatible: Any) -> None:
        if getattr(module, "is_base_frozen", True):
            incompatible.missing_keys[:] = [
                key for key in incompatible.missing_keys if not key.startswith(self.prefix) or is_trained(key)
            ]
