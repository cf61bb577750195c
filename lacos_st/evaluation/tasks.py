"""Evaluation sets as MTEB tasks: from MTEB by name, or from local files (`local_sets.py`), without a network.

`plan` turns groups, task names, languages and a directory into `Task`s; `Task.build` loads one. Files whose rows are
official run under the task's name, all others as a task of their own with one subset a language.

One thing of MTEB's STS is adapted, and only here: its evaluator holds both embedding matrices of a whole set;
`_streamed` runs it over slices of `SLICE_PAIRS` pairs and joins the similarities before the correlations are taken:
same scores, bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb._evaluators.any_sts_evaluator import AnySTSEvaluator
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS

from lacos_st.embedded.names import sample_path
from lacos_st.errors import LacosError
from lacos_st.evaluation.languages import UNKNOWN, languages_of, two_letters
from lacos_st.evaluation.local_sets import (
    DEV,
    SLICE_PAIRS,
    WHOLE,
    content,
    is_official,
    is_reported,
    meanings,
    mteb_split,
    official_names,
    own_metadata,
    read_tables,
    scan,
)
from lacos_st.evaluation.metrics import SPEARMAN
from lacos_st.evaluation.retrieval import by_name, own_task, with_queries
from lacos_st.files import file_name

ENGLISH = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R", "BIOSSES")
MULTILINGUAL = ("STS17", "STS22.v2", "STSBenchmarkMultilingualSTS", "SemRel24STS", "IndicCrosslingualSTS")
SAMPLE = sample_path("sts17")
"""Four STS17 pairs (CC BY-SA 4.0) that come with the package: group `sts-sample`."""

OWN = "local-"
"""Prefix of tasks that are not MTEB's, so that no local `sts17` is taken for the official STS17."""


@dataclass
class Task:
    """One task to run: an MTEB task by name, or local files that make one.

    Attributes:
        name: MTEB's name of the task, or the data set's name for a task of its own.
        split: MTEB's name of the split (`test`, `validation`, ...); empty for the task's own choice.
        files: For a local task, subset -> its files; empty for a task that MTEB fetches.
        keep: The subsets to run; empty means all.
        official: Whether the rows are those of the MTEB task of that name.
        from_group: Whether a group named it, so that it may be missing.
        retrieval: Whether the files are pairs to search in, and no scored ones.
    """

    name: str
    split: str = ""
    files: dict[str, list[Path]] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    official: bool = True
    from_group: bool = False
    retrieval: bool = False

    @property
    def is_sts(self) -> bool:
        """Whether its score is a correlation with annotators."""
        return not self.retrieval if self.files else mteb.get_task(self.name).metadata.type == "STS"

    def build(self) -> AbsTask:
        """Load the rows and return the MTEB task, ready for `mteb.evaluate`.

        Raises:
            LacosError: If a file is malformed.
            MissingDataError: If the data set can be had neither locally nor from the Hub.
        """
        if not self.files:
            return self._fetch()
        if self.retrieval:
            return own_task(file_name(self.name), self.split, self.files, self.keep)
        tables = {subset: read_tables(paths) for subset, paths in self.files.items()}
        if self.official:
            stock: Any = type(mteb.get_task(self.name))
            task = _streamed(stock)()
            # MTEB reuses a complete result whatever the data's revision: it is compared in runner.py.
            dataset = {**task.metadata.dataset, "revision": content(self.files)}
            task.metadata = task.metadata.model_copy(update={"dataset": dataset})
        else:
            name = file_name(self.name)  # MTEB names a file after it
            metadata = own_metadata("STS", name, self.split, self.files, SPEARMAN)
            own = type(f"Local_{name}", (AbsTaskSTS,), {"metadata": metadata})
            task = _streamed(own)()
        task.hf_subsets = self.keep or list(self.files)
        task.filter_eval_splits([self.split])
        left, right = task.column_names
        rows = {
            subset: DatasetDict({self.split: Dataset(table.rename_columns([left, right, "score"]))})
            for subset, table in tables.items()
        }
        task.dataset = rows if task.metadata.is_multilingual else rows["default"]
        task.data_loaded = True
        return task

    def _fetch(self) -> AbsTask:
        task = mteb.get_task(self.name)
        stock: Any = type(task)
        plain = stock._evaluate_subset is AbsTaskSTS._evaluate_subset
        if plain and task.metadata.main_score == SPEARMAN and task.modalities == ["text"]:
            task = _streamed(stock)()
        if isinstance(task, AbsTaskRetrieval):
            task = with_queries(stock)()
        if self.keep:
            task.hf_subsets = list(self.keep)
        if self.split:
            task.filter_eval_splits([self.split])
        try:
            task.load_data()
        except (OSError, ValueError) as reason:
            raise MissingDataError(_how_to_get(task, reason)) from reason
        return task


class MissingDataError(LacosError):
    """A data set that is neither among the local files nor to be had from the Hub."""


def _how_to_get(task: AbsTask, reason: Exception) -> str:
    subset = "<subset>" if task.metadata.is_multilingual else task.metadata.languages[0]
    name = f"{task.metadata.name.lower()}.{two_letters(subset)}.{task.eval_splits[0]}.jsonl"
    first = str(reason).strip().splitlines() or [type(reason).__name__]
    path = task.metadata.dataset["path"]
    from_file = (
        f", or save its rows (sentence1, sentence2, score) as {name} in a directory and name that with --data-dir"
        if task.metadata.type == "STS"
        else ""
    )
    return (
        f"{task.metadata.name}: its data set {path!r} is not among the local files and could not be fetched "
        f"({first[0]}). Run once with a network and without HF_HUB_OFFLINE, after which it is read from the "
        f"cache{from_file}."
    )


def plan(
    tasks: Sequence[str] | str | None,
    languages: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    split: str = "test",
    retrieval: Sequence[str | Path] | str | Path = (),
) -> list[Task]:
    """Decide what will run, reading only the files that may take part.

    Args:
        tasks: Group names (`sts-english`, `sts-multilingual`, `sts-sample`, `nanobeir`), MTEB task names, or names of
            local data sets. None: every set of `data_dir` and `retrieval`, or without either both STS groups.
        languages: Keep the subsets whose languages are all among these two-letter codes, or that are named
            themselves (`en-ar`). None keeps all.
        data_dir: Directory with local files.
        split: `test` for the splits that MTEB reports, `dev` for those meant for choosing between models.
        retrieval: Files of pairs or triplets, to search in.

    Returns:
        The tasks in a stable order: English, then multilingual, then local ones.

    Raises:
        LacosError: If a name is unknown, a file is malformed or nothing is left to run.
    """
    if split not in ("test", "dev"):
        raise LacosError(f"split={split!r} is unknown: use 'test' or 'dev'.")
    wanted = [tasks] if isinstance(tasks, str) else list(tasks or ())
    wanted = [name.lower() if name.lower() in _GROUPS else name for name in wanted]
    searched = {
        (OWN + name, split): Task(OWN + name, split, files, official=False, retrieval=True)
        for name, files in by_name([retrieval] if isinstance(retrieval, str | Path) else retrieval).items()
    }
    local: dict[tuple[str, str], Task] = {}
    if data_dir is not None:
        local = _local_tasks(Path(data_dir), split, _names(wanted) if wanted else None)
    if "sts-sample" in wanted:
        for key, task in _local_tasks(SAMPLE, split, None).items():
            local.setdefault(key, task)
    chosen: dict[tuple[str, str], Task] = {}
    if not wanted and data_dir is not None:
        chosen = local
    for name in wanted or ([] if data_dir is not None or searched else ["sts-english", "sts-multilingual"]):
        if name == "sts-sample":
            chosen.update(local)
        for member in _names([name]):
            same = {member.lower(), OWN + member.lower()}
            found = {key: task for key, task in local.items() if key[0].lower() in same}
            if not found:
                if name not in _GROUPS:
                    _ask_which(name, languages)
                online = _online(member, local, split)
                online.from_group = name in _GROUPS
                found = {(member, ""): online}
            chosen.update(found)
    if both := searched.keys() & chosen.keys():
        raise LacosError(f"Two sets are called {min(both)[0].removeprefix(OWN)!r}: rename the file of one.")
    chosen = chosen | searched
    kept = [task for task in chosen.values() if _keep_languages(task, languages)]
    if not kept:
        of = ", ".join(wanted) or data_dir or "the retrieval files"
        raise LacosError(
            f"Nothing to evaluate: no {split} set of {of} is in the languages "
            f"{list(languages or [])}. Leave --languages out to see all of them."
        )
    order = {name: position for position, name in enumerate((*ENGLISH, *MULTILINGUAL))}
    return sorted(kept, key=lambda task: (order.get(task.name, len(order)), not task.official, task.name))


def _names(groups: Iterable[str]) -> list[str]:
    names: list[str] = []
    for group in groups:
        names.extend(_GROUPS[group]() if group in _GROUPS else [group])
    return names


@cache
def _single_language() -> tuple[str, ...]:
    """MTEB's STS tasks in one language other than English, without re-annotated samples of other tasks."""
    return tuple(
        task.metadata.name
        for task in mteb.get_tasks(task_types=["STS"])
        if not task.metadata.is_multilingual
        and task.metadata.languages != ["eng"]
        and task.metadata.main_score == SPEARMAN
    )


_GROUPS: dict[str, Callable[[], Sequence[str]]] = {
    "sts-english": lambda: ENGLISH,
    "sts-multilingual": lambda: (*MULTILINGUAL, *_single_language()),
    "sts-sample": lambda: (),
    "nanobeir": lambda: [task.metadata.name for task in mteb.get_benchmark("NanoBEIR").tasks],
}


def _online(name: str, local: dict[tuple[str, str], Task], split: str) -> Task:
    try:
        task = mteb.get_task(name)
    except KeyError as unknown:
        here = sorted({key[0] for key in local})
        raise LacosError(
            f"{name!r} is no group ({', '.join(_GROUPS)}), no MTEB task and no local data set"
            f"{' (' + ', '.join(here) + ')' if here else ''}. "
            f"{str(unknown.args[0]).removeprefix('KeyError: ')}"
        ) from unknown
    dev = [found for found in ("dev", "validation") if found in task.metadata.eval_splits]
    if split == "dev" and task.metadata.type != "STS" and not (dev and "test" in task.metadata.eval_splits):
        raise LacosError(f"{name} has no split to choose by: MTEB reports all of it. Leave --split dev out.")
    if split == "dev":
        return Task(name, split=dev[0] if dev and "test" in task.metadata.eval_splits else "validation")
    return Task(name, split="test" if "test" in task.metadata.eval_splits else "")


def _ask_which(name: str, languages: Sequence[str] | None) -> None:
    """Refuse a name under which several data sets go, unless the languages say which: MTEB's `STSB` is Chinese."""
    meant = meanings(name)
    own = next((codes for task, codes in meant.items() if task.lower() == name.lower()), None)
    if len(meant) > 1 and not (own and languages and set(own) <= {code.lower() for code in languages}):
        which = ", ".join(f"{task} ({' '.join(codes)})" for task, codes in meant.items())
        chosen = f" For {name} itself add --languages {' '.join(own)}." if own else ""
        raise LacosError(f"{name!r} could be {which}. Which? Name it.{chosen}")


def _keep_languages(task: Task, languages: Sequence[str] | None) -> bool:
    """Narrow a task to the wanted languages; False if nothing is left."""
    if languages is None:
        return True
    wanted = {code.lower() for code in languages}
    subsets = list(task.files) or mteb.get_task(task.name).hf_subsets
    task.keep = [
        s for s in subsets if s == UNKNOWN or s.lower() in wanted or wanted.issuperset(languages_of(task.name, s))
    ]
    return bool(task.keep)


def _local_tasks(data_dir: Path, split: str, names: Sequence[str] | None) -> dict[tuple[str, str], Task]:
    """Local tasks by (name, split): a file joins each official subset that its rows are, or stays alone."""
    files = scan(data_dir)
    by_key = {(f.dataset, f.language, f.split): f for f in files}
    wanted = None if names is None else {name.lower().removeprefix(OWN) for name in names}
    found: dict[tuple[str, str], Task] = {}
    dev_files: dict[tuple[str, str], Path] = {}

    def add(name: str, own_split: str, subset: str, paths: list[Path], official: bool) -> None:
        if wanted is None or name.lower().removeprefix(OWN) in wanted:
            task = found.setdefault((name, own_split), Task(name, own_split, official=official))
            task.files[subset] = paths

    for file in files:
        whole = WHOLE.get((file.dataset, file.language))
        if whole and file.split in whole[1]:
            parts = [by_key[key] for s in whole[1] if (key := (file.dataset, file.language, s)) in by_key]
            paths = [part.path for part in parts]
            if len(parts) == len(whole[1]) and is_official(whole[0], "default", "test", paths):
                if split == "test" and file.split == "test":
                    add(whole[0], "test", "default", paths, official=True)
                continue
        candidates = [(name, subset, mteb_split(name, file.split)) for name, subset in official_names(file)]
        relevant = wanted is None or wanted & {
            file.dataset.lower(),
            *(name.lower() for name, _, _ in candidates),
        }
        if not relevant:
            continue
        official = [c for c in candidates if c[2] and is_official(*c, [file.path])]
        for name, subset, own_split in official:
            if is_reported(name, own_split) == (split == "test"):
                add(name, own_split, subset, [file.path], official=True)
        if not official and (file.split == "test" if split == "test" else file.split in DEV):
            file.codes()  # an error here, before anything runs, if it has none
            other = dev_files.setdefault((file.dataset, file.language), file.path)
            if other != file.path:
                raise LacosError(f"{other} and {file.path.name} are both dev sets of one name: rename or remove one.")
            add(OWN + file.dataset, file.split, file.language, [file.path], official=False)
    if wanted is None and not found:
        raise MissingDataError(f"{data_dir} has no {split} split: its files are for another purpose.")
    return found


def left_out(data_dir: Path, planned: Sequence[Task], split: str) -> str:
    """Name files of a directory that no task runs, up to five a reason; empty where there are none."""
    run = {path for task in planned for subset in task.keep or task.files for path in task.files.get(subset, ())}
    named = {file.path for file in scan(data_dir)}
    rest = [p for p in sorted(data_dir.iterdir()) if p.is_file() and p not in run and not p.name.startswith(".")]
    reasons = {
        "not named <dataset>.<language>.<split>.jsonl or .jsonl.gz": [p.name for p in rest if p not in named],
        f"no {split} set that was asked for": [p.name for p in rest if p in named],
    }
    return "; ".join(
        f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''} ({why})"
        for why, names in reasons.items()
        if names
    )


Sink = Callable[[str, str, np.ndarray, np.ndarray], None]


@cache
def _streamed(base: Any) -> Any:
    """The same STS task, encoding a slice of pairs at a time and handing out the similarity of each pair."""

    class Streamed(base):
        sink: Sink | None = None

        def _evaluate_subset(
            self, model: Any, data_split: Dataset, *, hf_split: str, hf_subset: str, **kwargs: Any
        ) -> Any:
            call = {key: kwargs.pop(key) for key in ("encode_kwargs", "num_proc")}
            kwargs.pop("prediction_folder")
            parts: dict[str, list[np.ndarray]] = {}
            for start in range(0, len(data_split), SLICE_PAIRS):
                evaluator = AnySTSEvaluator(
                    data_split.select(range(start, min(start + SLICE_PAIRS, len(data_split)))),
                    self.column_names,
                    task_metadata=self.metadata,
                    hf_split=hf_split,
                    hf_subset=hf_subset,
                    input1_prompt_type=self.input1_prompt_type,
                    input2_prompt_type=self.input2_prompt_type,
                    **kwargs,
                )
                for name, values in evaluator(model, **call).items():
                    parts.setdefault(name, []).append(np.asarray(values))
            scores = {name: np.concatenate(values) for name, values in parts.items()}
            gold = np.asarray(data_split["score"], dtype=np.float64)
            if self.sink is not None:
                self.sink(hf_subset, hf_split, scores["cosine_scores"], gold)
            return self._calculate_scores(scores, [self._normalize(value) for value in gold])

    Streamed.__name__ = Streamed.__qualname__ = base.__name__
    return Streamed
