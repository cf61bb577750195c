"""What a run brings on its own task: the held-out rows as a search, before the first step and after the best one.

A loss says little to a reader, and depends on the batch. So the held-out pairs are also asked as a user would: of all
held-out texts, is the nearest one to a query a right one (accuracy@1), and how far down is the first right one
(MRR@10)? sentence-transformers' `InformationRetrievalEvaluator` does it; `data/retrieval.py` says what is right.

The cost is that of embedding 512 rows, twice a run. More rows than that are sampled: 512 queries give accuracy@1 to
about four points, and the comparison before and after is over the same queries.

Beside it stand the four STS17 pairs that come with the package: what the run did to general similarity.
"""

from __future__ import annotations

import gzip
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from lacos_st.data.retrieval import as_retrieval
from lacos_st.embedded.names import sample_path
from lacos_st.model.card import held_out_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from lacos_st.model.model import LacosSentenceTransformer

logger = logging.getLogger(__name__)
_STS = sample_path("sts17")
MOST = 512  # rows
_FEWEST = 10  # queries: of fewer a share says nothing
_NAME = "held-out"
_METRICS = {"accuracy@1": "accuracy@1", "MRR@10": "mrr@10"}  # ours -> the evaluator's


class Measure:
    """The held-out rows as a search.

    Args:
        held: Held-out rows, with columns `anchor`, `positive` and perhaps negatives.
        batch_size: Texts in a forward pass.
        seed: Of the sample, where there are more than 512 rows.

    Attributes:
        queries: How many there are; 0 where the rows make no search: single sentences, or fewer than ten queries.
        texts: How many texts a query is compared with.
    """

    def __init__(self, held: Dataset, batch_size: int, seed: int) -> None:
        if len(held) > MOST:
            held = held.select(np.sort(np.random.default_rng(seed).permutation(len(held))[:MOST]))
        task = as_retrieval(held)
        self.queries, self.texts = len(task.queries), len(task.corpus)
        if self.queries < _FEWEST:
            if self.queries:
                logger.info("%d held-out queries: from %d on there is an accuracy", self.queries, _FEWEST)
            self.queries = 0
            return
        self._evaluator = InformationRetrievalEvaluator(
            task.queries,
            task.corpus,
            task.relevant,
            accuracy_at_k=[1],
            precision_recall_at_k=[10],
            map_at_k=[10],
            batch_size=batch_size,
            name=_NAME,
            write_csv=False,
        )

    def __call__(self, model: LacosSentenceTransformer, step: int = 0) -> dict[str, float]:
        """Ask every query.

        Args:
            model: As it is now.
            step: Of training, for the model's card, which keeps the last figures.

        Returns:
            "accuracy@1" and "MRR@10" x 100; empty without queries.
        """
        if not self.queries:
            return {}
        told = model.model_card_data
        told.ir_model = bool(told.ir_model)  # else ST would take the model for one of queries and documents
        found = self._evaluator(model, steps=step)
        return {name: 100 * found[f"{_NAME}_{model.similarity_fn_name}_{metric}"] for name, metric in _METRICS.items()}


def sts_sample(model: SentenceTransformer) -> dict[str, float]:
    """Spearman correlation x 100 on the four STS17 pairs that come with the package.

    Args:
        model: Any model.

    Returns:
        "en-en", "es-es", "es-en", "en-ar" -> correlation of cosine similarities with the gold scores.
    """
    scores = {}
    for pair in ("en-en", "es-es", "es-en", "en-ar"):
        with gzip.open(_STS / f"sts17.{pair}.test.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        first, second, gold = ([row[key] for row in rows] for key in ("sentence1", "sentence2", "score"))
        result = EmbeddingSimilarityEvaluator(
            first, second, gold, main_similarity="cosine", name=f"sts17-{pair}", write_csv=False
        )(model)
        scores[pair] = 100 * float(result[f"sts17-{pair}_spearman_cosine"])
    return scores


def held_out_loss(log: list[dict[str, Any]], step: int | None) -> dict[str, float]:
    """The held-out loss at a step, from the Trainer's log, as "loss"; empty where it was not taken there."""
    found = [entry["eval_loss"] for entry in log if entry["step"] == step and "eval_loss" in entry]
    return {"loss": found[0]} if found else {}


def described(own: dict[str, Any]) -> str:
    """The record of the measure as a table for a terminal.

    Args:
        own: "queries", "texts", and "before" and "after" with a value for each metric.

    Example:
        >>> print(described({"queries": 90, "texts": 180, "before": {"accuracy@1": 41.1, "loss": 1.2},
        ...                  "after": {"accuracy@1": 62.2, "loss": 0.5}}))
        90 held-out queries among 180 texts
                            before    after
        accuracy@1 x 100     41.10    62.20
        loss                1.2000   0.5000
    """
    asked = f"{own['queries']:,} held-out queries among {own['texts']:,} texts" if own["queries"] else "held-out rows"
    rows = [("", "before", "after"), *held_out_rows(own)]
    return "\n".join([asked, *(f"{name:<17}{before:>9}{after:>9}" for name, before, after in rows)])
