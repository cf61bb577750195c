"""The embedded base's table in the package: 4 bits an entry.

In memory a table is int8 (`embedding_table.py`). In the package an entry is the number of one of 16 levels, times its
row's scale, two entries a byte; columns named *fine* have 8 bits, with one scale each. `recipes/bloom-mini/pack.py`
makes it, and says why 4 bits are enough.

Shapes: V rows of H entries, F of them fine.
"""

import torch
from torch import Tensor

LEVELS = 16


def unpack_table(packed: dict[str, Tensor], fine: Tensor) -> Tensor:
    """Restore a table.

    Args:
        packed: ``codes`` (V, ceil((H - F) / 2)) uint8, two entries a byte, the first in the low half; ``levels``
            (16,); ``scale`` (V,); ``fine`` (V, F) int8; ``fine_scale`` (F,), the value of 127.
        fine: (H,) bool, the columns that have 8 bits.

    Returns:
        (V, H) fp32.
    """
    codes, scale, columns = packed["codes"], packed["scale"].float(), int((~fine).sum())
    table = torch.empty(len(codes), len(fine), dtype=torch.float32, device=codes.device)
    for start in range(0, len(codes), 8192):  # bounded scratch memory
        part = slice(start, start + 8192)
        nearest = torch.stack([codes[part] % LEVELS, codes[part] // LEVELS], 2).flatten(1)[:, :columns]
        table[part, ~fine] = packed["levels"][nearest.long()] * scale[part, None]
    table[:, fine] = packed["fine"] * (packed["fine_scale"] / 127)
    return table
