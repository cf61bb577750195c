"""Texts in a tokenised batch: where each lies, which of its tokens are a prompt, and which texts are the same.

A batch is padded, `input_ids` (texts, tokens) with `attention_mask`, or packed, (1, tokens of all) with
`cu_seq_lens_q`. `LacosTransformer.preprocess` adds to ST's features:

- `prompt_mask`, shaped like `input_ids`: 1 where a token belongs to the prompt. ST has one `prompt_length` for a whole
  batch, but how a prompt's end is cut depends on the text ("query: guitar" ends in " guitar", and the space is no
  token of its own). A value for each token is merged, cut and packed by ST as the tokens are.
- `text_hash` (texts,): equal exactly for equal texts as they were given, before a prompt. Token ids do not tell:
  behind a prompt the same text may be other tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Layout(NamedTuple):
    """The real tokens of a batch, one text after another.

    `flat` (tokens,): place in the flattened `input_ids`. `text` (tokens,): the text's number. `place` (tokens,):
    position in the text. `sizes` (texts,): tokens of each text.
    """

    flat: Tensor
    text: Tensor
    place: Tensor
    sizes: Tensor


def layout(features: Mapping[str, Any]) -> Layout:
    """Find the tokens of each text, padded (on either side) or packed.

    Args:
        features: `attention_mask` (texts, tokens), or `cu_seq_lens_q` (texts + 1,).

    Returns:
        Its layout.
    """
    if "cu_seq_lens_q" in features:
        bounds = _tensor(features["cu_seq_lens_q"]).long()
        sizes = bounds.diff()
        index = torch.arange(int(bounds[-1]), device=bounds.device)
    else:
        mask = _tensor(features["attention_mask"]).bool()
        sizes = mask.sum(dim=1)
        index = mask.flatten().nonzero().flatten()
    text = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    place = torch.arange(len(text), device=sizes.device) - (sizes.cumsum(0) - sizes)[text]
    return Layout(index, text, place, sizes)


def _tensor(values: Any) -> Tensor:
    """A tensor where it is, lists on the CPU: `torch.as_tensor` brings either to the process's default device."""
    return values if isinstance(values, Tensor) else torch.tensor(values, device="cpu")


def prompt_mask(features: Mapping[str, Any], prompt: list[int]) -> Tensor:
    """Mark the tokens that a text shares with the beginning of its prompt.

    Args:
        features: The batch.
        prompt: The prompt's own token ids.

    Returns:
        Like `input_ids`, of 0 and 1.
    """
    ids = _tensor(features["input_ids"])
    index, text, place, sizes = layout(features)
    tokens = torch.tensor([*prompt, -1], device=ids.device)  # -1 is no token: the prompt ends there
    expected = tokens[place.clamp(max=len(prompt))]
    differs = place.masked_fill(ids.flatten()[index] == expected, len(prompt))
    lengths = sizes.clamp(max=len(prompt)).scatter_reduce(0, text, differs, "amin")
    mask = torch.zeros(ids.shape, dtype=torch.long, device=ids.device)
    mask.view(-1)[index] = (place < lengths[text]).long()
    return mask


def prompt_lengths(features: Mapping[str, Any]) -> Tensor:
    """Count the tokens of each text that are its prompt; none where the batch has no `prompt_mask`.

    Args:
        features: The batch.

    Returns:
        int64 (texts,).
    """
    index, text, _, sizes = layout(features)
    if "prompt_mask" not in features:
        return torch.zeros_like(sizes)
    return torch.zeros_like(sizes).index_add_(0, text, features["prompt_mask"].flatten()[index])


def select(features: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Take the token embeddings of some texts of a batch.

    Args:
        features: The batch, with `token_embeddings`.
        rows: The texts' numbers, in ascending order.

    Returns:
        `token_embeddings`, and `attention_mask` or `cu_seq_lens_q`.
    """
    tokens = features["token_embeddings"]
    if "cu_seq_lens_q" not in features:
        return {"token_embeddings": tokens[rows], "attention_mask": features["attention_mask"][rows]}
    where = layout(features)
    bounds = functional.pad(where.sizes[rows].cumsum(0), (1, 0))
    return {"token_embeddings": tokens[:, torch.isin(where.text, rows)], "cu_seq_lens_q": bounds}


def hash_texts(inputs: Sequence[Any]) -> Tensor:
    """Name texts by their content, the same in every process.

    Args:
        inputs: Texts, pairs of texts, or `{"text": ...}`.

    Returns:
        int64 (texts,), from 0 to below 2^60.
    """
    return torch.tensor([_hash(text) for text in inputs], device="cpu")


def _hash(text: Any) -> int:
    plain = text["text"] if isinstance(text, Mapping) else text
    content = plain if isinstance(plain, str) else "\0".join(plain)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest()) >> 4
