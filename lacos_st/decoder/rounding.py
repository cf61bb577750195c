"""A tensor's rows in int8, left with it for the layers that it is given to.

Queries, keys and values are made of one tensor, a gate and what it gates of another: rounding it once is enough. So
whoever has made or rounded such a tensor leaves the result as an attribute of it, and a layer that would leave out the
same columns takes it from there. Only without gradients, and only where a run has shown that nobody writes to the
tensor in between (`outliers.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outliers(NamedTuple):
    """Columns of a layer's input that ``w8a8`` does not round; see `outliers.py`.

    `columns` (c,): which. `inliers` (in,): 0 at these, 1 at the others. `weights` (out, c): what multiplies them.
    """

    columns: Tensor
    inliers: Tensor
    weights: Tensor


Rounded = tuple[Tensor, Tensor]
"""int8 rows (N, in) and a scale for each, (N,)."""

_NAME = "lacos_rounded"


def remember_rounding(x: Tensor, outliers: Outliers | None, rounded: Rounded) -> None:
    """Leave with a tensor its rounded rows.

    Args:
        x: (..., in), as it goes to the layers.
        outliers: Which columns were left out.
        rounded: The rows.
    """
    setattr(x, _NAME, (None if outliers is None else outliers.inliers, rounded))


def remembered_rounding(x: Tensor, outliers: Outliers | None) -> Rounded | None:
    """What was left with a tensor, if the same columns were left out of it."""
    inliers, rounded = getattr(x, _NAME, (None, None))
    return rounded if inliers is (None if outliers is None else outliers.inliers) else None
