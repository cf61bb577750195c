"""The embedded base's table in the package: 4 bits an entry.

In memory a table is int8 (`embedding_table.py`). Half of those bits cost a small model hardly anything: a sentence is a
mean over tokens, which averages their rounding out. Without them twice as many words fit into the same file, and a word
that is one token is worth more than its last four bits.

An entry, divided by its row's root mean square, becomes the nearest of 16 levels, which are fitted to the table (Lloyd
1982); a row's scale then makes the least squared error. Columns that may be named *fine* keep 8 bits, with one scale
each: where a value steers what layers do, as an outlier does in LLM.int8 (Dettmers et al., 2022), 4 bits are too few.

Shapes: V rows of H entries, F of them fine.
"""

import torch
from torch import Tensor

LEVELS = 16
_SAMPLE = 2**20  # entries that the levels are fitted to
_ROUNDS = 100


def fit_levels(entries: Tensor) -> Tensor:
    """Fit the levels that make the least squared error: Lloyd's algorithm in one dimension.

    Args:
        entries: At least one value, any shape.

    Returns:
        (16,) fp32, ascending.

    Example:
        >>> fit_levels(torch.arange(16.0).repeat(4)).tolist()[:4]
        [0.0, 1.0, 2.0, 3.0]
    """
    sample = entries.flatten().double().sort().values
    levels = sample[
        torch.linspace(0, len(sample) - 1, LEVELS, dtype=torch.float32, device=sample.device).round().long()
    ]
    for _ in range(_ROUNDS):
        nearest = torch.bucketize(sample, (levels[1:] + levels[:-1]) / 2)
        count = torch.bincount(nearest, minlength=LEVELS)
        mean = torch.zeros_like(levels).index_add(0, nearest, sample) / count.clamp_min(1)
        levels = torch.where(count > 0, mean, levels)
    return levels.float()


def _ratio(rows: Tensor) -> Tensor:
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-20)


def round_rows(rows: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Find each entry's level and each row's scale.

    Args:
        rows: (n, C) fp32.
        levels: (16,) ascending.

    Returns:
        (n, C) the nearest level of each entry, and (n,) the scale that makes ``levels[nearest] * scale`` nearest to
        the row.
    """
    nearest = torch.bucketize(_ratio(rows), (levels[1:] + levels[:-1]) / 2)
    rounded = levels[nearest]
    return nearest, (rounded * rows).sum(1) / rounded.square().sum(1).clamp_min(1e-20)


def pack_table(table: Tensor, fine: Tensor) -> dict[str, Tensor]:
    """Round a table to 4 bits an entry.

    Args:
        table: (V, H) floating.
        fine: (H,) bool, the columns that keep 8 bits: not all of them.

    Returns:
        ``codes`` (V, ceil((H - F) / 2)) uint8, two entries a byte, the first in the low half; ``levels`` (16,);
        ``scale`` (V,) bf16; ``fine`` (V, F) int8; ``fine_scale`` (F,), the value of 127.
    """
    table = table.float()
    coarse, kept = table[:, ~fine], table[:, fine]
    rows = -(-_SAMPLE // coarse.shape[1])
    levels = fit_levels(_ratio(coarse[:: -(-len(coarse) // rows)]))
    nearest, scale = round_rows(coarse, levels)
    if nearest.shape[1] % 2:
        nearest = torch.nn.functional.pad(nearest, (0, 1))
    fine_scale = kept.abs().amax(0)
    return {
        "codes": (nearest[:, ::2] + LEVELS * nearest[:, 1::2]).to(torch.uint8),
        "levels": levels,
        "scale": scale.bfloat16(),
        "fine": (kept * (127 / fine_scale.clamp_min(1e-20))).round().to(torch.int8),
        "fine_scale": fine_scale,
    }


def unpack_table(packed: dict[str, Tensor], fine: Tensor) -> Tensor:
    """Restore a table.

    Args:
        packed: What `pack_table` made.
        fine: (H,) bool, as given to it.

    Returns:
        (V, H) fp32.

    Example:
        >>> fine = torch.tensor([False, False, False, True])
        >>> table = torch.tensor([[1.0, -1.0, 1.0, 0.25], [-2.0, 2.0, 2.0, 8.0]])
        >>> unpack_table(pack_table(table, fine), fine)[:, :3].tolist()
        [[1.0, -1.0, 1.0], [-2.0, 2.0, 2.0]]
    """
    codes, scale, columns = packed["codes"], packed["scale"].float(), int((~fine).sum())
    table = torch.empty(len(codes), len(fine), dtype=torch.float32, device=codes.device)
    for start in range(0, len(codes), 8192):  # bounded scratch memory
        part = slice(start, start + 8192)
        nearest = torch.stack([codes[part] % LEVELS, codes[part] // LEVELS], 2).flatten(1)[:, :columns]
        table[part, ~fine] = packed["levels"][nearest.long()] * scale[part, None]
    table[:, fine] = packed["fine"] * (packed["fine_scale"] / 127)
    return table
