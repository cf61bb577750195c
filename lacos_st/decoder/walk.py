"""What a decoder is made of and what its training keeps, found from its configuration alone.

The model is built on torch's "meta" device, where tensors have shapes and no memory. Its layers give the sizes of
weights and adapters. One forward pass over a few tokens, with the adapters in place, shows which tensors autograd keeps
for the backward pass: all but parameters, each storage once, and those grow with the tokens. Nothing of an architecture
is known here, so that a new one is predicted as well.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lacos_st.errors import LacosError

ALL_LINEAR = "all-linear"  # PEFT's word for them
_ATTENTION = "lacos_kept"
_TOKENS = 64


class Shapes(NamedTuple):
    """Sizes of a decoder.

    `linear`: (end of the name, columns in, columns out) of each linear layer. `table`: (rows, columns) of the embedding
    table. `rest`: entries of all other parameters. `layers`, `hidden`: number of layers and size of a token's state.
    """

    linear: list[tuple[str, int, int]]
    table: tuple[int, int]
    rest: int
    layers: int
    hidden: int

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """Columns in and out of the layers that an adapter with these targets lies over.

        Raises:
            LacosError: There is no such layer.
        """
        known = list(dict.fromkeys(name for name, _, _ in self.linear))
        check_targets(targets, known)
        everywhere = list(targets) == [ALL_LINEAR]
        return [(columns, out) for name, columns, out in self.linear if everywhere or name in targets]


def check_targets(targets: Sequence[str], known: list[str]) -> None:
    """Refuse targets of an adapter that a model has no layer for.

    Args:
        targets: Ends of layers' names, or `ALL_LINEAR` alone.
        known: Ends of the names of the model's linear layers.

    Raises:
        LacosError: With what there is.
    """
    if not targets or (list(targets) != [ALL_LINEAR] and not set(targets) <= set(known)):
        unknown = sorted(set(targets) - set(known)) or list(targets)
        raise LacosError(f"LoRA targets {unknown} are not in this model: choose from {known}, or {ALL_LINEAR!r} alone.")


def linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear | Conv1D]]:
    """A decoder's linear layers with their names, also where adapters lie over them."""
    return [
        (name.removesuffix(".base_layer"), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name and not isinstance(module, LoraLayer)
    ]


def build(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A decoder on the meta device."""
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        return AutoModel.from_config(config).to(dtype)


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Sizes of a decoder that `build` has made."""
    linear = []
    for name, layer in linear_layers(model):
        columns, out = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        linear.append((name.rpartition(".")[2], columns, out))
    table = model.get_input_embeddings().weight
    known = sum(a * b for _, a, b in linear) + table.numel()
    rest = sum(parameter.numel() for parameter in model.parameters()) - known
    config = model.config.get_text_config()
    return Shapes(linear, (table.shape[0], table.shape[1]), rest, config.num_hidden_layers, config.hidden_size)


class _Kept(torch.autograd.Function):
    """Stands for attention, which keeps queries, keys, values and its output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def _attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return _Kept.apply(q, k, v).transpose(1, 2), None


def kept_bytes(model: PreTrainedModel, rank: int, targets: Sequence[str], dropout: float) -> float:
    """Bytes for each token that a forward pass keeps for its backward pass.

    Args:
        model: Of `build`; it gets an adapter, and is of no use afterwards.
        rank: Of the adapter.
        targets: Of the adapter, as in `Shapes.adapted`.
        dropout: Of the adapter.

    Returns:
        Bytes of a token.

    Raises:
        LacosError: The architecture cannot be run without memory.
    """
    wanted = ALL_LINEAR if list(targets) == [ALL_LINEAR] else list(targets)
    model.train().requires_grad_(False)
    kept: dict[int, Any] = {}  # storages, which stay alive so that none is counted twice
    frozen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in frozen:
            kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=rank, lora_dropout=dropout, target_modules=wanted), model)
        frozen |= {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        inputs = {
            "input_ids": torch.zeros(1, _TOKENS, dtype=torch.long),
            "attention_mask": torch.empty(1, 1, 1, 1),  # transformers leaves a mask of four dimensions alone
            "use_cache": False,
        }
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = torch.arange(_TOKENS)[None]
        try:
            model.set_attn_implementation(_ATTENTION)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = model(**inputs)
        except Exception as error:  # whatever an architecture does that needs values
            raise LacosError(
                f"The memory of training cannot be predicted for a {model.config.model_type!r} model ({error}): try a "
                "batch and look at the peak."
            ) from error
    del output
    return sum(storage.nbytes() for storage in kept.values()) / _TOKENS


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, lambda *args, **kwargs: None)
