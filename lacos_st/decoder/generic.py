"""Any decoder over packed tokens: transformers' own model and forward pass, without its padding.

Shapes: B sequences, padded length T, N real tokens, H hidden.

BLOOM has a forward pass of its own (`bloom.py`). Any other decoder keeps transformers':

1. before it the N real tokens are gathered into one row, (1, N), with positions that restart in each sequence;
2. its attention layers call `packed_attention.attend`, which attends sequence by sequence;
3. after it the states are put back into the caller's shape: (B, T, H) with zeros at pads, or (1, N, H) where the batch
   came flattened.

The model is given a subclass of its own class, made here, with the same parameters under the same names: what PEFT, the
Trainer and saving see.

Whether an architecture can be packed is found out once, when it first encodes: in a row of two sequences the second
must come out the same whatever the first is. Where it does not (attention that does not go through transformers'
interface, states that run along a row), or where attention is asked for something unknown, batches stay padded and go
through the architecture's own attention; that is said once.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from lacos_st.decoder.lora import FusesLora
from lacos_st.decoder.packed_attention import NAME, UnknownAttentionError
from lacos_st.decoder.packing import Layout, plan

logger = logging.getLogger(__name__)


class Packed(NamedTuple):
    """A packed batch: its layout, and the shape that it came in."""

    layout: Layout
    batch: int
    width: int

    def gather(self, x: Tensor) -> Tensor:
        """Real tokens as rows: (B, T, ...) -> (1, N, ...)."""
        flat = x.flatten(0, 1)
        return (flat if self.layout.places is None else flat.index_select(0, self.layout.places))[None]

    def scatter(self, x: Tensor) -> Tensor:
        """Rows in the shape they came in: (1, N, H) -> (B, T, H), zeros at pads."""
        rows = x[0]
        if self.layout.places is not None:
            rows = rows.new_zeros(self.batch * self.width, rows.shape[1]).index_copy(0, self.layout.places, rows)
        return rows.view(self.batch, self.width, -1)

    def positions(self) -> Tensor:
        """Places of the tokens in their sequences: (1, N)."""
        bounds = self.layout.cu_seqlens.long()
        starts = bounds[:-1].repeat_interleave(bounds.diff())
        return (torch.arange(len(starts), device=starts.device) - starts)[None]


class _Packing:
    """What is known of a model: whether it can be packed (None: not yet tried), and the attention it came with."""

    def __init__(self, attention: str | None) -> None:
        self.attention, self.possible = attention, None
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:  # a model goes to other processes pickled, and a lock does not
        return {"attention": self.attention, "possible": self.possible}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    attention: str | None
    possible: bool | None


_OPTIONS = ("output_hidden_states", "output_attentions", "return_dict")
_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}


def _packed_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of a transformers class that packs its batches."""
    if stock not in _CLASSES:

        @functools.wraps(stock.forward)
        def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
            kwargs = _before(self, args, kwargs)
            return _after(kwargs.get("packed"), stock.forward(self, **kwargs))

        made = type(f"Lacos{stock.__name__}", (FusesLora, stock), {"forward": forward, "__module__": __name__})
        _CLASSES[stock] = made
    return _CLASSES[stock]


def __getattr__(name: str) -> Any:
    """A class by the name under which a pickle has it, in a process that has not made it yet."""
    stock = getattr(transformers, name.removeprefix("Lacos"), None) if name.startswith("Lacos") else None
    if isinstance(stock, type) and issubclass(stock, PreTrainedModel):
        return _packed_class(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def pack_(model: PreTrainedModel) -> PreTrainedModel:
    """Let a decoder compute real tokens only, in place; see the head of this file.

    Args:
        model: One of transformers' decoders without a head, with PEFT adapters injected or not.

    Returns:
        The same model. Calling it again changes nothing.
    """
    if type(model) not in _CLASSES.values():
        model.lacos_packing = _Packing(model.config._attn_implementation)
        recorded = _CAN_RECORD_REGISTRY.get(model)
        model.__class__ = _packed_class(type(model))
        _CAN_RECORD_REGISTRY[model] = recorded  # which hidden states it can give, kept by class
    return model


def can_pack(model: PreTrainedModel) -> bool:
    """Whether a model's batches are packed; the first call tries it on a few tokens."""
    packing: _Packing = model.lacos_packing
    with packing.lock:
        if packing.possible is None:
            problem = _problem(model)
            packing.possible = problem is None
            if problem is not None:
                model.set_attn_implementation(packing.attention)
                logger.warning(
                    "%s computes padded batches through its own attention, which is slower where lengths differ: %s.",
                    type(model).__name__,
                    problem,
                )
    return packing.possible


def _problem(model: PreTrainedModel) -> str | None:
    """Why a model's batches cannot be packed, or None."""
    if not model._supports_attention_backend or "position_ids" not in inspect.signature(model.forward).parameters:
        return "its attention does not go through transformers' interface"
    model.set_attn_implementation(NAME)
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    both = Packed(plan(1, 8, model.device, None, torch.tensor([0, 5, 8])), 1, 8)
    seen = []
    devices = [model.device] if model.device.type == "cuda" else []
    for changed in (ids, torch.cat([ids[:, :5].flip(1), ids[:, 5:]], 1)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                torch.manual_seed(0)  # the same dropout
                states = model(input_ids=changed, packed=both).last_hidden_state
        except UnknownAttentionError as error:
            return str(error)
        seen.append(states[0, 5:])
    if torch.allclose(seen[0], seen[1], rtol=1e-3, atol=1e-5):
        return None
    return "what one text says would reach another"


def _before(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Pack a batch, unless a cache is asked for."""
    if args:
        kwargs = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
    boundaries: Tensor | None = kwargs.get("cu_seq_lens_q")
    packed: Packed | None = kwargs.get("packed")
    known = {*inspect.signature(model.forward).parameters, *_OPTIONS}  # features say more of a batch than models read
    kwargs = {name: value for name, value in kwargs.items() if name in known}
    if packed is None:
        given = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        cached = kwargs.get("past_key_values") is not None or kwargs.get("use_cache")
        if given is None or cached or not can_pack(model):
            return kwargs
        batch, width = given.shape[:2]
        mask = kwargs.get("attention_mask")
        packed = Packed(plan(batch, width, given.device, mask, boundaries), batch, width)
        if not packed.layout.longest:  # nothing but padding, which pooling leaves out
            return {**kwargs, "attention_mask": torch.ones_like(given, dtype=torch.long)}
    shape = (packed.batch, packed.width)
    kwargs = {
        name: packed.gather(value) if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in kwargs.items()
    }
    placeholder = packed.layout.cu_seqlens.new_empty(1, 1, 1, 1)  # transformers leaves a mask of four dimensions alone
    positions = packed.positions()
    return {
        **kwargs, "attention_mask": placeholder, "position_ids": positions, "use_cache": False, "packed": packed,
    }  # fmt: skip


def _after(packed: Packed | None, output: Any) -> Any:
    """Put the states back into the batch's shape."""
    if packed is None:
        return output
    if isinstance(output, tuple):
        return (packed.scatter(output[0]), *output[1:])
    output["last_hidden_state"] = packed.scatter(output.last_hidden_state)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(map(packed.scatter, output.hidden_states))
    return output
