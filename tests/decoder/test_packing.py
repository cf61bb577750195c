"""A layout holds every real token once, in groups that attention can take."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from lacos_st.decoder.packing import SHORT, plan

CPU = torch.device("cpu")
lengths_of_a_batch = st.lists(st.integers(0, 12) | st.integers(SHORT - 2, SHORT + 2), min_size=1, max_size=6)


def rows_of(layout, tokens):
    """The packed rows, each sequence as a list."""
    flat = tokens.flatten()
    packed = flat if layout.places is None else flat[layout.places]
    bounds = layout.cu_seqlens.tolist()
    return [packed[start:stop].tolist() for start, stop in pairwise(bounds)]


@given(lengths=lengths_of_a_batch, extra=st.integers(0, 3), left=st.booleans())
def test_padded_and_flattened_pack_the_same_tokens(lengths, extra, left):
    width = max(lengths) + extra
    tokens = torch.arange(len(lengths) * width).view(len(lengths), width)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if left else real
    expected = sorted((row[keep].tolist() for row, keep in zip(tokens, real, strict=True)), key=len, reverse=True)
    padded = plan(len(lengths), width, CPU, real.long(), None)
    assert rows_of(padded, tokens) == expected
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    flattened = plan(1, sum(lengths), CPU, None, boundaries)
    assert rows_of(flattened, tokens[real]) == expected
    assert padded.longest == flattened.longest == max(lengths)


@given(lengths=lengths_of_a_batch)
def test_groups_cover_the_rows_and_only_short_ones_hold_pads(lengths):
    layout = plan(1, sum(lengths), CPU, None, torch.tensor([0, *lengths]).cumsum(0))
    assert [group.start for group in layout.groups] + [sum(lengths)] == [0] + [group.stop for group in layout.groups]
    for group in layout.groups:
        rows = torch.arange(group.stop - group.start)
        if group.pad is None:
            assert len(rows) == group.sequences * group.length
        else:
            assert group.length <= SHORT
            assert len(group.pad) == group.sequences * group.length
            assert torch.equal(group.pad[group.unpad], rows)
            assert int(group.key_mask.sum()) == len(rows)
