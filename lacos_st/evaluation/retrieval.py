"""Retrieval tasks: MTEB's by name, NanoBEIR, and files of one's own; scored by MTEB's evaluator.

A file of one's own is what `train --eval-data` takes: pairs or triplets, in any format and under any column names that
training reads. Each anchor is a query, all positives and negatives are the pool (`data/retrieval.py`). So the measure
of a training run can be repeated for any model, on the rows that it was never shown.

MTEB gives means over queries. `with_queries` keeps the value of each query beside them: a share of 200 queries is
worth about seven points either way, and a reader has to see that. It uses MTEB's own hook for scores of a task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from lacos_st.data.columns import layout_of
from lacos_st.data.load import load_training_data
from lacos_st.data.readers import FORMATS, open_file
from lacos_st.data.retrieval import as_retrieval
from lacos_st.errors import LacosError, shown
from lacos_st.evaluation.languages import UNKNOWN, script_codes
from lacos_st.evaluation.local_sets import own_metadata
from lacos_st.evaluation.metrics import NDCG

_PYTREC = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "map": "map_cut", "hit_rate": "success"}

Sink = Callable[[str, np.ndarray], None]


def name_and_language(path: Path) -> tuple[str, str]:
    """A set's name and language, from a file's name: `tickets.en.csv`, or `tickets.csv` of no known language.

    Example:
        >>> name_and_language(Path("tickets.en.test.csv")), name_and_language(Path("my tickets.parquet"))
        (('tickets', 'en'), ('my tickets', 'und'))
    """
    endings = "|".join(map(re.escape, FORMATS))
    name, *rest = re.sub(rf"({endings})(\.gz)?$", "", path.name, flags=re.I).split(".")
    try:
        script_codes(rest[0] if rest else "")
    except LacosError:
        return ".".join([name, *rest]), UNKNOWN
    return name, rest[0]


def by_name(paths: Sequence[str | Path]) -> dict[str, dict[str, list[Path]]]:
    """Files as sets: name -> language -> the file.

    Raises:
        LacosError: A file is missing, or two would be one.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for path in map(Path, paths):
        name, language = name_and_language(path)
        if not path.is_file():
            raise LacosError(f"--retrieval {path} is no file.")
        if language in found.setdefault(name, {}):
            raise LacosError(f"{path} and {found[name][language][0]} would be one set, {name!r}: rename one.")
        found[name][language] = [path]
    return found


def read_retrieval(path: Path) -> dict[str, Any]:
    """Read pairs or triplets as MTEB has a retrieval split.

    Args:
        path: Any file that `train --eval-data` takes.

    Returns:
        "queries", "corpus", "relevant_docs" and "top_ranked", which is None.

    Raises:
        LacosError: A row that cannot be read, named with file and line; or no query is left.
    """
    layout = layout_of(open_file(path))
    if layout.kind == "scored":
        raise LacosError(
            f"{path} has scores in column {shown(layout.extra)}: pairs with scores are an STS set, for --data-dir. "
            "Retrieval needs pairs of a query and its answer, in two columns such as query and positive."
        )
    task = as_retrieval(load_training_data(path, if_present=True, on_report=lambda report: None))
    if not task.queries:
        raise LacosError(
            f"{path}: every query of it is among its own answers, so there is nothing to search for. Retrieval needs "
            "pairs of a query and its answer, in two columns such as query and positive."
        )
    return {
        "queries": Dataset.from_dict({"id": list(task.queries), "text": list(task.queries.values())}),
        "corpus": Dataset.from_dict({"id": list(task.corpus), "text": list(task.corpus.values())}),
        "relevant_docs": {query: dict.fromkeys(sorted(right), 1) for query, right in task.relevant.items()},
        "top_ranked": None,
    }


def own_task(name: str, split: str, files: dict[str, list[Path]], keep: Sequence[str] = ()) -> AbsTask:
    """Files of one's own as an MTEB task, one subset a language.

    Args:
        name: The task's.
        split: `test`, or `dev`.
        files: Language -> one file.
        keep: The languages to run; none means all.

    Raises:
        LacosError: As `read_retrieval`.
    """
    metadata = own_metadata("Retrieval", name, split, files, NDCG)
    task: Any = with_queries(type(f"Local_{name}", (AbsTaskRetrieval,), {"metadata": metadata}))()
    task.hf_subsets = list(keep or files)
    task.dataset = {language: {split: read_retrieval(*files[language])} for language in task.hf_subsets}
    task.data_loaded = True
    return task


@cache
def with_queries(base: Any) -> Any:
    """The same retrieval task, handing out the main score of each query to `query_sink`, in the order of their ids."""

    class WithQueries(base):
        query_sink: Sink | None = None

        def task_specific_scores(
            self, scores: dict[str, dict[str, float]], *args: Any, hf_subset: str, **kwargs: Any
        ) -> dict[str, float]:
            metric, _, cut = self.metadata.main_score.partition("_at_")
            name = f"{_PYTREC.get(metric)}_{cut}"
            if self.query_sink is not None and all(name in values for values in scores.values()):
                self.query_sink(hf_subset, np.array([scores[query][name] for query in sorted(scores)]))
            return super().task_specific_scores(scores, *args, hf_subset=hf_subset, **kwargs)

    WithQueries.__name__ = WithQueries.__qualname__ = base.__name__
    return WithQueries
