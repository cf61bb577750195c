"""Rows kept from training to choose the best step by.

What is held out are pairs, an anchor and its positive, and of each one row. All other rows with these pairs leave the
training data as well: copies that a weight made, the same pair with other negatives, the same pair in another source.
Otherwise the held-out loss would tell how well they were learnt by heart.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from lacos_st.data.mixing import CHUNK, digest
from lacos_st.errors import LacosError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)
MOST = 512


def hold_out(data: DatasetDict, seed: int) -> tuple[DatasetDict, Dataset]:
    """Hold out a tenth of the pairs, at most 512.

    Args:
        data: Sources with columns `anchor`, `positive` and perhaps negatives.
        seed: Of the choice.

    Returns:
        (the sources without them, one row of each with the columns that all sources have).

    Raises:
        LacosError: There are fewer than 20 pairs.
    """
    from datasets import DatasetDict, concatenate_datasets

    pairs = [_pairs(part) for part in data.values()]
    every, first = np.unique(np.concatenate(pairs), return_index=True)
    count = min(MOST, len(every) // 10)
    if count < 2:
        raise LacosError(
            f"The training data have {len(every)} different pairs: at least 20 are needed, so that some can be held "
            "out to choose the best step. Add rows, or name eval_data (--eval-data)."
        )
    chosen = np.random.default_rng(seed).permutation(len(every))[:count]
    width = min(len(part.column_names) for part in data.values())
    training, held, start = DatasetDict(), [], 0
    for (name, part), its_pairs in zip(data.items(), pairs, strict=True):
        rows = np.sort(first[chosen]) - start
        rows = rows[(rows >= 0) & (rows < len(part))]
        held.append(part.select(rows).select_columns(part.column_names[:width]))
        left = np.flatnonzero(~np.isin(its_pairs, every[chosen]))
        if len(left):
            training[name] = part.select(left)
        start += len(part)
    logger.info("%d pairs held out, %d rows left to train on", count, sum(training.num_rows.values()))
    return training, concatenate_datasets(held)


def pairs_in_both(data: DatasetDict, held: Dataset) -> int:
    """Count the held-out rows whose anchor and positive are a training row's too."""
    chosen = _pairs(held)
    shared = np.zeros(len(chosen), bool)
    for part in data.values():
        shared |= np.isin(chosen, _pairs(part))
    return int(shared.sum())


def _pairs(data: Dataset) -> np.ndarray:
    """(rows,) uint64, equal where anchor and positive are, whitespace aside."""
    batches = data.select_columns(["anchor", "positive"]).iter(CHUNK)
    pairs = (pair for batch in batches for pair in zip(batch["anchor"], batch["positive"], strict=True))
    return np.fromiter((int.from_bytes(digest(pair)[:8]) for pair in pairs), np.uint64, len(data))
