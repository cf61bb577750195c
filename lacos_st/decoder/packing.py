"""Packing: the real tokens of a batch as rows without padding.

Shapes: B sequences, padded length T, N real tokens.

A batch comes padded, (B, T) with a mask, or flattened, (1, N) with the boundaries of its sequences. `plan` sorts the
sequences by length and says which place each packed row comes from. Everything outside attention runs on those
rows. Attention needs sequences, so the layout also cuts the rows into groups of similar length: a short group may hold
a few pads at the end of its sequences, which is cheaper than one call for each length; long ones hold none.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Up to this many tokens sequences of different lengths may share a group, and attention a bias of (heads, T, T).
SHORT = 128


class Group(NamedTuple):
    """Sequences that attend in one call.

    They are packed rows ``start`` to ``stop``: ``sequences`` of them, padded to ``length``. ``pad``
    (sequences * length,) has the row of each padded place, ``unpad`` (stop - start,) the padded place of each
    row; both are None when all lengths are equal and a view does. ``key_mask`` (sequences, 1, 1, length)
    is False at pads.
    """

    start: int
    stop: int
    sequences: int
    length: int
    pad: Tensor | None
    unpad: Tensor | None
    key_mask: Tensor | None


class Layout(NamedTuple):
    """How a batch is packed: row r is the input's flat place ``places[r]`` (None: place r)."""

    places: Tensor | None
    groups: list[Group]
    cu_seqlens: Tensor
    longest: int


def _group(lengths: list[int], device: torch.device) -> list[Group]:
    """Cut sequences (sorted, longest first) into groups with little padding."""
    groups, start, first = [], 0, 0
    while first < len(lengths) and lengths[first] > 0:
        longest, last = lengths[first], first + 1
        shortest_allowed = longest * 3 // 4 if longest <= SHORT else longest
        while last < len(lengths) and lengths[last] >= max(1, shortest_allowed):
            last += 1
        members = lengths[first:last]
        stop = start + sum(members)
        pad = unpad = key_mask = None
        if members[-1] != longest:
            sizes = torch.tensor(members, dtype=torch.long, device="cpu")
            ends = sizes.cumsum(0)
            steps = torch.arange(longest, device="cpu")
            real = steps < sizes[:, None]
            # a pad repeats its sequence's last token: finite, and hidden from every real query
            pad = ((ends - sizes)[:, None] + torch.minimum(steps, sizes[:, None] - 1)).flatten().to(device)
            unpad = real.flatten().nonzero().flatten().to(device)
            key_mask = real[:, None, None].to(device)
        groups.append(Group(start, stop, last - first, longest, pad, unpad, key_mask))
        start, first = stop, last
    return groups


def _layout(lengths: list[int], starts: Tensor | None, mask: Tensor | None, device: torch.device) -> Layout:
    """Plan a batch from its lengths and either first places (flattened) or the mask (padded)."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    ordered = [lengths[i] for i in order]
    index = torch.tensor(order, dtype=torch.long, device=device)
    if mask is not None:
        if min(lengths, default=0) == mask.shape[1]:
            places = None
        else:
            width = mask.shape[1]
            flat = mask.index_select(0, index).flatten().nonzero().flatten()
            places = index.index_select(0, flat // width) * width + flat % width
    elif order == list(range(len(lengths))):
        places = None
    else:
        assert starts is not None
        sizes = torch.tensor(ordered, dtype=torch.long, device=device)
        shift = starts.index_select(0, index) - (sizes.cumsum(0) - sizes)
        places = shift.repeat_interleave(sizes) + torch.arange(sum(lengths), device=device)
    cu = functional.pad(torch.tensor(ordered, dtype=torch.long, device=device).cumsum(0), (1, 0)).int()
    return Layout(places, _group(ordered, device), cu, max(lengths, default=0))


def plan(batch: int, width: int, device: torch.device, mask: Tensor | None, cu_seqlens: Tensor | None) -> Layout:
    """Choose the packing of a padded or flattened batch.

    Args:
        batch: Rows of the input, 1 if flattened.
        width: Columns of the input.
        device: Where the layout's tensors go.
        mask: (B, T), not 0 at real tokens; padding may be on either side.
        cu_seqlens: (S + 1,) boundaries of a flattened batch's S sequences; empty ones are allowed.

    Returns:
        The layout; sequences without a token take no part in it.

    Raises:
        ValueError: The mask or the boundaries do not fit the input.
    """
    if cu_seqlens is not None:
        if batch != 1 or int(cu_seqlens[-1]) != width:
            raise ValueError(
                f"a flattened batch is one row of all its tokens: got shape ({batch}, {width}) with "
                f"cu_seq_lens_q ending at {int(cu_seqlens[-1])}."
            )
        starts = cu_seqlens.to(device, torch.long)
        return _layout(starts.diff().tolist(), starts[:-1], None, device)
    if mask is None:
        return _layout([width] * batch, torch.arange(batch, device=device) * width, None, device)
    real = mask.to(device) != 0
    if real.shape != (batch, width):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; a packed model takes one 0/1 entry per token: "
            f"({batch}, {width})."
        )
    return _layout(real.sum(1).tolist(), None, real, device)
