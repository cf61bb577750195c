"""Metrics by MTEB's names: which are shown, and what readers call them."""

from __future__ import annotations

SPEARMAN = "cosine_spearman"
"""The main score of STS sets."""
NDCG = "ndcg_at_10"
"""The main score of retrieval sets."""
MORE = ("mrr_at_10", "hit_rate_at_1", "recall_at_10")
"""What is shown beside a retrieval set's main score."""
_NAMES = {"hit_rate_at_1": "accuracy@1", SPEARMAN: "Spearman"}


def metric_name(metric: str) -> str:
    """MTEB's name of a metric, as readers know it.

    Example:
        >>> [metric_name(name) for name in ("ndcg_at_10", "mrr_at_10", "hit_rate_at_1", "accuracy")]
        ['nDCG@10', 'MRR@10', 'accuracy@1', 'accuracy']
    """
    name = _NAMES.get(metric, metric).replace("_at_", "@")
    return name.replace("ndcg", "nDCG").replace("mrr", "MRR").replace("_", " ")
