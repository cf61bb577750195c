"""Columns of a layer's input that are far larger than the others, and are therefore not rounded.

In trained decoders a few columns of a linear layer's input are many times the median column, the same in every text
(LLM.int8, arXiv 2208.07339, found them first). ``w8a8`` rounds a token with one scale, which these columns set:
the others then keep few of their 255 steps. So each layer multiplies its `OUTLIER_COLUMNS` largest columns in the
activations' dtype, beside the integer product of the others. LLM.int8 looks for such columns in each batch anew, and an
embedding depends on who shares the batch; here they are found once, from a fixed sequence of random token ids: a pure
function of the weights.

The same run shows which layers are given one tensor, and which norm made it: they share one rounding (`fused.py`).

BLOOM does without: its chain of fused passes has one scale a token, and `bloom.py` tells from its layer norms whether
that will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.errors import LacosError, shown

OUTLIER_COLUMNS = 16  # in each layer; benchmarks/fidelity.py has what they bring
PROBE = (
    "lacos_probe"  # setting of a configuration: the sequence that they are found with, where it is not the usual one
)
_TOKENS = 64  # of that sequence


class Inputs(NamedTuple):
    """What a run has shown of the layers' inputs.

    `largest`: layer -> (in,) largest absolute value of each column. `groups`: lists of layers that were given one
    tensor. `norms`: first layer of a group -> the norm that made its tensor.
    """

    largest: dict[nn.Module, Tensor]
    groups: list[list[LacosLinear8bit]]
    norms: dict[nn.Module, nn.Module]


def probe(config: Any) -> list[int]:
    """The token ids that a model's outliers are found with.

    Args:
        config: The model's. A vocabulary that was made smaller has other numbers for the same tokens, and says which.

    Raises:
        LacosError: It says something else.
    """
    rows = config.vocab_size
    told = getattr(config, PROBE, None)
    if told is None:
        return torch.randint(rows, (_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    if not (isinstance(told, list) and told and all(type(number) is int and 0 <= number < rows for number in told)):
        raise LacosError(f"{PROBE}={shown(told)} in config.json must be token ids below {rows}: copy the model again.")
    return told


def keep_outliers_(model: nn.Module, tokens: list[int], run: Callable[[Tensor], object]) -> Inputs | None:
    """Find the largest input columns of a model's ``w8a8`` layers, in place.

    Args:
        model: A decoder; adapters in it are left out of account.
        tokens: Token ids to find them with, as `probe` gives them.
        run: Runs the model over token ids (1, tokens).

    Returns:
        What the run has shown; None without such layers, and nothing happens.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LacosLinear8bit)]
    if not any("w8a8" in (layer.compute_form, layer.training_form) for layer in layers):
        return None
    for layer in layers:
        layer.outliers, layer.shares_input = None, False
    ids = torch.tensor([tokens])
    run(ids[:, :2])  # a model may try itself on a few tokens the first time
    inputs = _watch(model, layers, lambda: run(ids))
    for group in inputs.groups:
        for layer in group:
            layer.shares_input = len(group) > 1
        largest = inputs.largest[group[0]]
        if len(largest) < 4 * OUTLIER_COLUMNS:
            continue
        columns = largest.topk(OUTLIER_COLUMNS).indices.sort().values
        inliers = torch.ones_like(largest).index_fill_(0, columns, 0)
        for layer in group:
            layer.keep_outliers(columns, inliers)
    return inputs


def _watch(model: nn.Module, layers: list[LacosLinear8bit], run: Callable[[], object]) -> Inputs:
    """Run a model without its adapters, and see what its layers are given."""
    inputs = Inputs({}, [], {})
    made_by: dict[int, nn.Module] = {}
    groups: dict[int, list[LacosLinear8bit]] = {}
    alive: list[Tensor] = []  # so that no two tensors have one address
    sums: dict[int, float] = {}

    def made(norm: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            made_by[id(output)] = norm
            alive.append(output)

    def given(layer: LacosLinear8bit, args: tuple[Tensor]) -> None:
        x = args[0].detach()
        inputs.largest[layer] = x.abs().flatten(0, -2).amax(0).float()
        key, total = id(args[0]), float(x.double().sum())
        if sums.setdefault(key, total) != total:  # it was written to in between
            key = -len(alive)
        group = groups.setdefault(key, [])
        if not group:
            inputs.groups.append(group)
            if key in made_by:
                inputs.norms[layer] = made_by[key]
        group.append(layer)
        alive.append(args[0])

    hooks = [norm.register_forward_hook(made) for norm in model.modules() if is_norm(norm)]
    hooks += [layer.register_forward_pre_hook(given) for layer in layers]
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [(parameter, parameter.requires_grad) for module in adapted for parameter in module.parameters()]
    enabled = [module for module in adapted if not module.disable_adapters]
    training = model.training
    try:
        model.eval()
        for module in enabled:
            module.enable_adapters(False)
        with torch.no_grad():
            run()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
        for module in enabled:
            module.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
    return inputs


def is_norm(module: nn.Module) -> bool:
    """Whether a module may be a norm: all it has is one vector of gains, and perhaps one of shifts."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1 and not list(module.children())
