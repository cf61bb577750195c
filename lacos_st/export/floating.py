"""A model in 16 bits without an adapter: what software that knows neither 8 bits nor adapters reads.

The adapter is folded in, in fp32, and the sum is rounded to bfloat16 once; it is not quantised again, as merging in
place does. bfloat16, because it has the range of fp32: in fp16 the activations of some families, Gemma among them,
overflow. The table's rows and the layers' come out of their 8 bits on the way. A base that was never rounded to 8 bits,
that is a plain checkpoint, is exported as it lies there.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from sentence_transformers.util import load_file_path
from torch import Tensor, nn
from transformers import PreTrainedModel

from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.errors import LacosError
from lacos_st.model.artifact import RECORD
from lacos_st.model.frozen import is_trained
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.names import base_config, resolve
from lacos_st.model.stock import inexpressible

DTYPE = torch.bfloat16


def load_floating(name: str) -> LacosSentenceTransformer:
    """Load a model, fold its active adapter in, and give it floating weights.

    Args:
        name: As `LacosSentenceTransformer` takes it.

    Returns:
        The model, its base in bfloat16.

    Raises:
        LacosError: There is no such model, or it does what other software cannot.
    """
    rounded = load_file_path(resolve(name), RECORD) is not None or hasattr(base_config(name), "quantization_config")
    model = LacosSentenceTransformer(name, transformer_options=None if rounded else {"quantization": "none"})
    if missing := inexpressible(list(model)):
        raise LacosError(f"{name!r} has {' and '.join(missing)}, which only lacos-st computes: it cannot be exported.")
    transformer = model.transformer
    stock: Any = next(kind for kind in type(transformer.model).__mro__ if kind.__module__.startswith("transformers."))
    config = deepcopy(transformer.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.architectures = DTYPE, [stock.__name__]
    state = merged_state(transformer.model)
    transformer.model = stock.from_pretrained(None, config=config, state_dict=state, dtype=DTYPE).eval()
    transformer.quantization = "none"
    transformer.mark_base("merged")
    return model


def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """A decoder's tensors in bfloat16, 8-bit ones restored and the active adapter added, under stock names.

    Args:
        model: With 8-bit layers or none, with adapters or none.
    """
    state = {key: tensor for key, tensor in model.state_dict().items() if not is_trained(key)}
    for path, layer in model.named_modules():
        adapted = isinstance(layer, LoraLayer)
        base = layer.get_base_layer() if adapted else layer
        if path.endswith(".base_layer") or not (adapted or isinstance(base, LacosLinear8bit | LacosEmbedding8bit)):
            continue
        weight = _floating(base)
        if adapted:
            path = f"{path}.base_layer"
            for name in layer.active_adapters:
                weight = weight + layer.get_delta_weight(name).float() if name in layer.lora_A else weight
        state[f"{path}.weight"] = weight.to(DTYPE)
        state.pop(f"{path}.SCB", None)  # bitsandbytes' own
        state.pop(f"{path}.weight_format", None)
    return {
        key.replace(".base_layer.", "."): tensor.detach().to(DTYPE) if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def _floating(layer: nn.Module) -> Tensor:
    """A layer's weight in fp32."""
    if isinstance(layer, LacosLinear8bit | LacosEmbedding8bit):
        return layer.dequantize(torch.float32)
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().float()
