"""Columns of a layer's input that are far larger than the others, and are therefore not rounded.

In trained decoders a few columns of a linear layer's input are 80 to 250 times the median column, the same in every
text (LLM.int8, arXiv 2208.07339, found them first). ``w8a8`` rounds a token with one scale, which these columns set:
the others then keep few of their 255 steps. So each layer multiplies its `OUTLIER_COLUMNS` largest columns in the
activations' dtype, beside the integer product of the others. LLM.int8 looks for such columns in each batch anew, and an
embedding depends on who shares the batch; here they are found once, from a fixed sequence of random token ids: a pure
function of the weights.

BLOOM does without: its chain of fused passes has one scale a token, and `bloom.py` tells from its layer norms whether
that will do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lacos_st.decoder.quantization import LacosLinear8bit

OUTLIER_COLUMNS = 16  # in each layer; benchmarks/fidelity.py has what they bring
_TOKENS = 64  # of the sequence that they are found with


def keep_outliers_(model: nn.Module, vocabulary: int, run: Callable[[Tensor], object]) -> None:
    """Find the largest input columns of a model's ``w8a8`` layers, in place; nothing happens without such layers.

    Args:
        model: A decoder; adapters in it are left out of account.
        vocabulary: Number of its token ids.
        run: Runs the model over token ids (1, tokens).
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LacosLinear8bit)]
    if not any("w8a8" in (layer.compute_form, layer.training_form) for layer in layers):
        return
    largest: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, args: tuple[Tensor]) -> None:
        # the last call counts: a model may try itself on a few tokens first, and then once only
        largest[layer] = args[0].detach().abs().flatten(0, -2).amax(0).float()

    for layer in layers:
        layer.outliers = None
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [(parameter, parameter.requires_grad) for module in adapted for parameter in module.parameters()]
    enabled = [module for module in adapted if not module.disable_adapters]
    training = model.training
    try:
        model.eval()
        for module in enabled:
            module.enable_adapters(False)
        ids = torch.randint(vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            run(ids)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
        for module in enabled:
            module.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
    for layer, columns in largest.items():
        if len(columns) >= 4 * OUTLIER_COLUMNS:
            layer.outliers = columns.topk(OUTLIER_COLUMNS).indices.sort().values
