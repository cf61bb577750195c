"""The student: BLOOM's architecture in small, how its states become a sentence, and its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import BloomConfig, BloomModel

from lacos_st.bloom import LacosBloomModel


def config(vocabulary: int, hidden: int = 256, layers: int = 4, heads: int = 8) -> BloomConfig:
    return BloomConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        n_layer=layers,
        n_head=heads,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
    )


def grow(static: BloomModel, layers: int, heads: int = 8) -> LacosBloomModel:
    """`static` with more layers, which begin almost as the identity; it may have some of its own already."""
    model = LacosBloomModel(config(static.config.vocab_size, static.config.hidden_size, layers, heads))
    missing, unexpected = model.load_state_dict(static.state_dict(), strict=False)
    if unexpected or any(not name.startswith("h.") for name in missing):
        raise ValueError(f"{missing} {unexpected} do not fit.")
    for block in model.h[len(static.h) :]:
        for linear in (block.self_attention.dense, block.mlp.dense_4h_to_h):
            torch.nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * layers))
    return model


def embed(model: BloomModel, ids: Tensor, bounds: Tensor) -> Tensor:
    """(tokens,) ids of sentences end to end -> (sentences, hidden), weighted by position as `weightedmean` pools."""
    states = model(ids[None], cu_seq_lens_q=bounds).last_hidden_state[0]
    lengths = bounds.diff()
    sentence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    weight = (torch.arange(len(ids)) - bounds[:-1].repeat_interleave(lengths) + 1).to(states.dtype)
    weight = weight / (lengths * (lengths + 1) / 2)[sentence]
    return states.new_zeros(len(lengths), states.shape[1]).index_add(0, sentence, states * weight[:, None])


def save(model: BloomModel, directory: Path, state: dict | None = None) -> None:
    """Write weights, then the training state; each replaces the old one whole."""
    temporary = directory.with_name(directory.name + ".part")
    model.save_pretrained(temporary)
    directory.mkdir(parents=True, exist_ok=True)
    if state:
        torch.save(state, temporary / "state.pt")
    for file in sorted(temporary.iterdir()):
        file.replace(directory / file.name)
    temporary.rmdir()
