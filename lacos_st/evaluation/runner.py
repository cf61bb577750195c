"""`Runner`: one model through MTEB, task by task, with a cache that cannot be stale.

Two keys decide what is measured again: the model's revision is a digest of its content (`fingerprint.py`), so one
more training step is a new revision; the data's revision is a digest of the local files. MTEB compares neither
when a result is complete, hence the checks in `_cached`. The similarities of an STS set are written as soon as it is
done, before MTEB's JSON, so an interrupted run goes on with the next set; a retrieval task is measured as a whole.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.abstasks import AbsTask
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from lacos_st.errors import LacosError
from lacos_st.evaluation.languages import languages_of
from lacos_st.evaluation.metrics import MORE
from lacos_st.evaluation.results import LEXICAL, SetResult, detail_path
from lacos_st.evaluation.statistics import lexical_similarity, spearman
from lacos_st.evaluation.tasks import Task
from lacos_st.files import file_name
from lacos_st.model.fingerprint import fingerprint
from lacos_st.quiet import errors_only, without_bars_of_datasets

Done = dict[tuple[str, str], SetResult]
_LEXICAL_FORM = "tfidf-char-2-4"


class Runner:
    """One model with its name, revision and cache.

    Args:
        label: The model's name in tables and directories.
        model: The model.
        directory: Where results are kept; None keeps them in memory.
        batch_size: Sentences a batch.
    """

    def __init__(self, label: str, model: SentenceTransformer, directory: Path | None, batch_size: int) -> None:
        self.directory = directory
        self.batch_size = batch_size
        self.name = label
        self.revision = fingerprint(model)
        with errors_only("mteb"):  # its own deprecations, and prompts that it does not know
            self.wrapper = SentenceTransformerEncoderWrapper(model)
        safe = file_name(label)  # MTEB names directories after it
        name = label if "/" in label and safe == label.replace("/", "__") else f"local/{safe}"
        meta = self.wrapper.mteb_model_meta.model_copy(update={"name": name, "revision": self.revision})
        self.wrapper.mteb_model_meta = self.meta = meta
        self.cache = None if directory is None else mteb.ResultCache(directory)

    def run(self, task: Task, *, baseline: bool) -> tuple[Done, bool]:
        """Measure a task, or read it back.

        Returns:
            (model, subset) -> result, and whether nothing had to be encoded.
        """
        with random_state_kept():
            built = task.build()
            split = built.eval_splits[0]
            results, resumable = self._cached(built, split)
            complete = all((self.name, subset) in results for subset in built.hf_subsets)
            if not complete:
                results |= self._measure(built, split, results, resume=resumable)
            if baseline and hasattr(built, "sink"):
                for subset in built.hf_subsets:
                    gold = results[self.name, subset].gold
                    results[LEXICAL, subset] = self._lexical(built, split, subset, gold)
            built.unload_data()
        return results, complete

    def _cached(self, task: AbsTask, split: str) -> tuple[Done, bool]:
        """What an earlier run left behind.

        Returns:
            Results of this very model on these very rows, and whether MTEB's file is of both, so that new sets may
            be added to it.
        """
        if self.directory is None or self.cache is None:
            return {}, False
        try:
            stored = self.cache.load_task_result(task.metadata.name, self.meta)
        except (ValueError, TypeError, KeyError, AttributeError):  # cut off while MTEB wrote it, or no result at all
            self.cache.get_task_result_path(task.metadata.name, self.meta).unlink()
            return {}, False
        if stored is None or stored.dataset_revision != task.metadata.revision:
            return {}, False
        found: Done = {}
        for subset in {scores.get("hf_subset") for scores in stored.scores.get(split, [])} & set(task.hf_subsets):
            kept = self._detail(self.name, self.revision, task, split, subset)
            if kept is None or kept.data != task.metadata.revision:
                return {}, False  # MTEB would think this one done and never hand out its similarities
            found[self.name, subset] = kept
        return found, True

    def _measure(self, task: AbsTask, split: str, known: Done, *, resume: bool) -> Done:
        """Encode what is not known. Each STS set is kept as soon as it is done, before MTEB writes its JSON."""
        found: Done = {}
        queries: dict[str, np.ndarray] = {}
        started = time.perf_counter()

        def keep(subset: str, _: str, similarity: np.ndarray, gold: np.ndarray) -> None:
            nonlocal started
            seconds, started = time.perf_counter() - started, time.perf_counter()
            score = spearman(gold, similarity)
            found[self.name, subset] = self._keep(task, split, subset, score, seconds, similarity, gold)

        if hasattr(task, "sink"):
            task.sink = keep
        if hasattr(task, "query_sink"):
            task.query_sink = queries.__setitem__
        try:
            # superseded tasks; constant similarities, which the table reports
            with without_bars_of_datasets(), errors_only("mteb"):
                outcome = mteb.evaluate(
                    self.wrapper,
                    task,
                    cache=self.cache,
                    overwrite_strategy="only-missing" if resume else "always",
                    encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                    show_progress_bar=False,
                    co2_tracker=False,
                )
        except ValueError as error:
            if "contains NaN" in str(error) or "contains infinity" in str(error):
                raise LacosError(
                    f"{self.name} gives embeddings with NaN or infinity on {task.metadata.name}."
                ) from error
            raise
        if not hasattr(task, "sink"):  # not STS: MTEB's scores, and of a retrieval task those of each query
            none, seconds = np.empty(0), outcome.task_results[0].evaluation_time or 0.0
            metric = task.metadata.main_score
            for scores in outcome.task_results[0].scores[split]:
                subset = scores["hf_subset"]
                if (self.name, subset) in known:
                    continue
                found[self.name, subset] = self._keep(
                    task, split, subset, 100 * scores["main_score"], seconds, none, none, metric=metric,
                    more={name: 100 * scores[name] for name in MORE if name in scores and name != metric},
                    each=100 * queries.get(subset, none),
                )  # fmt: skip
        return found

    def _lexical(self, task: AbsTask, split: str, subset: str, gold: np.ndarray) -> SetResult:
        """The baseline on the same rows; it depends on the data alone and is measured once a directory."""
        stored = self._detail(LEXICAL, _LEXICAL_FORM, task, split, subset)
        if stored is not None and stored.data == task.metadata.revision:
            return stored
        dataset: Any = task.dataset
        rows = dataset.get(subset, dataset)[split]
        left, right = task.column_names
        started = time.perf_counter()
        similarity = lexical_similarity(rows[left][:], rows[right][:])
        seconds, score = time.perf_counter() - started, spearman(gold, similarity)
        return self._keep(task, split, subset, score, seconds, similarity, gold, LEXICAL, _LEXICAL_FORM)

    def _detail(self, name: str, revision: str, task: AbsTask, split: str, subset: str) -> SetResult | None:
        if self.directory is None:
            return None
        path = detail_path(self.directory / "details", name, revision, task.metadata.name, subset, split)
        stored = SetResult.load(path) if path.exists() else None
        return stored if stored is not None and stored.model == name else None  # `a/b` and `a__b` share a place

    def _keep(
        self,
        task: AbsTask,
        split: str,
        subset: str,
        score: float,
        seconds: float,
        similarity: np.ndarray,
        gold: np.ndarray,
        model: str = "",
        revision: str = "",
        **more: Any,
    ) -> SetResult:
        name = task.metadata.name
        result = SetResult(
            model=model or self.name,
            revision=revision or self.revision,
            task=name,
            subset=subset,
            split=split,
            languages=languages_of(name, subset),
            score=score,
            seconds=seconds,
            data=task.metadata.revision,
            similarity=np.asarray(similarity, dtype=np.float64),
            gold=gold,
            **more,
        )
        if self.directory is not None:
            result.save(self.directory / "details")
        return result


@contextmanager
def random_state_kept() -> Iterator[None]:
    """MTEB seeds Python, NumPy and torch whenever it makes a task; a training run must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
