"""Evaluation sets as MTEB tasks: from MTEB by name, or from local files, without a network.

A local set is `<dataset>.<language>.<split>.jsonl[.gz]`, one object a line with `sentence1`, `sentence2`,
`score`. Its rows run under an official MTEB task and subset only where they *are* the official rows: the name
has to point there and the number of rows and their mean score have to equal the descriptive statistics that
MTEB ships. All other files become a task of their own, named after the data set, with one subset a language.
So a score with an official name is comparable with published ones, and a look-alike (all 1,379 rows of KorSTS
where MTEB reads 1,376) never passes for it.

Two things of MTEB are adapted here, and only here:

* its STS evaluator holds both embedding matrices of a whole set; `_streamed` runs it over slices of
  `SLICE_PAIRS` pairs and joins the similarities before the correlations are taken: same scores, bounded
  memory;
* its language codes (`spa-Latn`) are mapped to and from the two-letter codes in file names.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from mteb._evaluators.any_sts_evaluator import AnySTSEvaluator
from mteb.abstasks import AbsTask
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.languages import ISO_TO_LANGUAGE
from mteb.languages.iso_mappings import _get_iso1_to_iso3, _hf_lang_to_iso_lang_script

from lacos_st.config import LacosError
from lacos_st.readers import DataError, open_file

ENGLISH = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R", "BIOSSES")
MULTILINGUAL = ("STS17", "STS22.v2", "STSBenchmarkMultilingualSTS", "SemRel24STS", "IndicCrosslingualSTS")
SAMPLE = Path(__file__).parent / "assets" / "sts"
"""Four STS17 pairs (CC BY-SA 4.0) that come with the package: group `sts-sample`."""

OWN = "local-"
"""Prefix of tasks that are not MTEB's, so that no local `sts17` is taken for the official STS17."""

SLICE_PAIRS = 16_384
"""Pairs encoded at a time: two matrices of 16,384 x 1,024 floats are 134 MB."""

# The languages of BLOOM's training data (ROOTS), as listed on the model card of bigscience/bloom.
BLOOM_LANGUAGES = frozenset(
    {"ak", "ar", "as", "bm", "bn", "ca", "en", "es", "eu", "fon", "fr", "gu", "hi", "id", "ig", "ki", "kn"}
    | {"lg", "ln", "ml", "mr", "ne", "nso", "ny", "or", "pa", "pt", "rn", "rw", "sn", "st", "sw", "ta", "te"}
    | {"tn", "ts", "tum", "tw", "ur", "vi", "wo", "xh", "yo", "zh", "zu"}
)

# Local names that differ from MTEB's: (dataset, language) -> [(task, subset)]. A file whose dataset is called
# like an MTEB task (`sts17`, `biosses`, `klue-sts`) needs no line here.
_TEN = ("de", "es", "fr", "it", "nl", "pl", "pt", "ru", "zh")
_ALIASES: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("stsb", "en"): [("STSBenchmark", "default"), ("STSBenchmarkMultilingualSTS", "en")],
    **{("stsb", code): [("STSBenchmarkMultilingualSTS", code)] for code in _TEN},
    ("stsb", "ro"): [("RonSTS", "default")],
    ("cnsd-stsb", "zh"): [("STSB", "default")],
    ("sick", "pl"): [("SICK-R-PL", "default")],
    ("sick", "nl"): [("SICK-NL-STS", "default")],
    ("sick", "pt"): [("SICK-BR-STS", "default")],
    ("sick", "fa"): [("Farsick", "default")],
    ("cdsc", "pl"): [("CDSC-R", "default")],
    ("assin2", "pt"): [("Assin2STS", "default")],
    ("ruparaphraser", "ru"): [("RUParaPhraserSTS", "default")],
}
# MTEB's SICK-R is the whole data set.
_WHOLE = {("sick", "en"): ("SICK-R", ("train", "trial", "test"))}
# MTEB names some sets by a member of a macrolanguage (`cmn` for Chinese); two-letter codes name the whole.
_MACRO = {"cmn": "zh", "arb": "ar", "arq": "ar", "ary": "ar", "swh": "sw", "npi": "ne", "ory": "or", "pes": "fa"}
_MACRO |= {"zsm": "ms", "lvs": "lv", "ekk": "et", "uzn": "uz", "azj": "az", "als": "sq", "nob": "no", "khk": "mn"}
_DEV = ("dev", "validation", "val", "trial")
_FILE = re.compile(r"(?P<dataset>[^.]+)\.(?P<language>[^.]+)\.(?P<split>[^.]+)\.jsonl(\.gz)?")
_SCHEMA = pa.schema([("sentence1", pa.string()), ("sentence2", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True)
class LocalFile:
    """One file of a data directory, named by its parts."""

    path: Path
    dataset: str
    language: str
    split: str


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
    """

    name: str
    split: str = ""
    files: dict[str, list[Path]] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    official: bool = True
    from_group: bool = False

    def build(self) -> AbsTask:
        """Load the rows and return the MTEB task, ready for `mteb.evaluate`.

        Raises:
            LacosError: If a file is malformed.
            MissingDataError: If the data set can be had neither locally nor from the Hub.
        """
        if not self.files:
            return self._fetch()
        tables = {subset: read_tables(paths) for subset, paths in self.files.items()}
        if self.official:
            stock: Any = type(mteb.get_task(self.name))
            task = _streamed(stock)()
            metadata = task.metadata
        else:
            langs = {subset: _script_codes(subset) for subset in self.files}
            metadata = TaskMetadata(
                name=self.name,
                description=f"Local STS files of {self.name}",
                dataset={"path": f"local/{self.name}", "revision": ""},
                type="STS",
                category="t2t",
                eval_splits=[self.split],
                eval_langs=langs,
                main_score="cosine_spearman",
            )
            own = type(f"Local_{self.name}", (AbsTaskSTS,), {"metadata": metadata})
            task = _streamed(own)()
        # MTEB reuses a complete result whatever the data's revision: it is compared in evaluation.py.
        dataset = {**metadata.dataset, "revision": f"local-{_content(self.files)}"}
        task.metadata = metadata.model_copy(update={"dataset": dataset})
        task.hf_subsets = self.keep or list(self.files)
        task.filter_eval_splits([self.split])
        left, right = task.column_names
        rows = {
            subset: DatasetDict({self.split: Dataset(table.rename_columns([left, right, "score"]))})
            for subset, table in tables.items()
        }
        task.dataset = rows if metadata.is_multilingual else rows["default"]
        task.data_loaded = True
        return task

    def _fetch(self) -> AbsTask:
        task = mteb.get_task(self.name)
        stock: Any = type(task)
        plain = stock._evaluate_subset is AbsTaskSTS._evaluate_subset
        if plain and task.metadata.main_score == "cosine_spearman" and task.modalities == ["text"]:
            task = _streamed(stock)()
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
    short = {three: two for two, three in _get_iso1_to_iso3().items()}.get(subset, subset)
    name = f"{task.metadata.name.lower()}.{short}.{task.eval_splits[0]}.jsonl"
    first = str(reason).strip().splitlines() or [type(reason).__name__]
    path = task.metadata.dataset["path"]
    return (
        f"{task.metadata.name}: its data set {path!r} is not among the local files and could not be fetched "
        f"({first[0]}). Either run once with a network and without HF_HUB_OFFLINE, after "
        f"which it is read from the cache, or save its rows (sentence1, sentence2, score) as {name} in a "
        "directory and name that with --data-dir."
    )


def plan(
    tasks: Sequence[str] | str | None,
    languages: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    split: str = "test",
) -> list[Task]:
    """Decide what will run, reading only the files that may take part.

    Args:
        tasks: Group names (`sts-english`, `sts-multilingual`, `sts-sample`), MTEB task names, or names of
            local data sets. None: every file of `data_dir`, or without one both STS groups.
        languages: Keep the subsets whose languages are all among these two-letter codes, or that are named
            themselves (`en-ar`). None keeps all.
        data_dir: Directory with local files.
        split: `test` for the splits that MTEB reports, `dev` for those meant for choosing between models.

    Returns:
        The tasks in a stable order: English, then multilingual, then local ones.

    Raises:
        LacosError: If a name is unknown, a file is malformed or nothing is left to run.
    """
    if split not in ("test", "dev"):
        raise LacosError(f"split={split!r} is unknown: use 'test' or 'dev'.")
    wanted = [tasks] if isinstance(tasks, str) else list(tasks or ())
    local: dict[tuple[str, str], Task] = {}
    if data_dir is not None:
        local = _local_tasks(Path(data_dir), split, _names(wanted) if wanted else None)
    if "sts-sample" in wanted:
        for key, task in _local_tasks(SAMPLE, split, None).items():
            local.setdefault(key, task)
    chosen: dict[tuple[str, str], Task] = {}
    if not wanted and data_dir is not None:
        chosen = local
    for name in wanted or ([] if data_dir is not None else ["sts-english", "sts-multilingual"]):
        if name == "sts-sample":
            chosen.update(local)
        for member in _names([name]):
            same = {member.lower(), OWN + member.lower()}
            found = {key: task for key, task in local.items() if key[0].lower() in same}
            if not found:
                online = _online(member, local, split)
                online.from_group = name in _GROUPS
                found = {(member, ""): online}
            chosen.update(found)
    kept = [task for task in chosen.values() if _keep_languages(task, languages)]
    if not kept:
        raise LacosError(
            f"Nothing to evaluate: no {split} set of {', '.join(wanted) or data_dir} is in the languages "
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
        and task.metadata.main_score == "cosine_spearman"
    )


_GROUPS: dict[str, Callable[[], Sequence[str]]] = {
    "sts-english": lambda: ENGLISH,
    "sts-multilingual": lambda: (*MULTILINGUAL, *_single_language()),
    "sts-sample": lambda: (),
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
    if split == "dev":
        return Task(name, split=dev[0] if dev and "test" in task.metadata.eval_splits else "validation")
    return Task(name, split="test" if "test" in task.metadata.eval_splits else "")


def _keep_languages(task: Task, languages: Sequence[str] | None) -> bool:
    """Narrow a task to the wanted languages; False if nothing is left."""
    if languages is None:
        return True
    wanted = {code.lower() for code in languages}
    subsets = list(task.files) or mteb.get_task(task.name).hf_subsets
    task.keep = [s for s in subsets if s.lower() in wanted or wanted.issuperset(languages_of(task.name, s))]
    return bool(task.keep)


def scan(data_dir: Path) -> list[LocalFile]:
    """List the evaluation files of a directory.

    Raises:
        LacosError: If the directory is missing or holds no file of the right name.
    """
    if not data_dir.is_dir():
        raise LacosError(f"--data-dir {data_dir} is no directory.")
    found = []
    for path in sorted(data_dir.iterdir()):
        parts = _FILE.fullmatch(path.name)
        if parts and path.is_file():
            found.append(LocalFile(path, parts["dataset"], parts["language"], parts["split"]))
    if not found:
        folders = [path for path in sorted(data_dir.iterdir()) if path.is_dir()]
        below = [sub.name for sub in folders if any(_FILE.fullmatch(path.name) for path in sub.iterdir())]
        hint = f" Its folder {below[0]!r} has such files: name that." if below else ""
        raise LacosError(
            f"--data-dir {data_dir} has no file named <dataset>.<language>.<split>.jsonl or .jsonl.gz, "
            f"such as stsb.en.test.jsonl.gz.{hint}"
        )
    return found


def _local_tasks(data_dir: Path, split: str, names: Sequence[str] | None) -> dict[tuple[str, str], Task]:
    """Local tasks by (name, split): a file joins each official subset that its rows are, or stays alone."""
    files = scan(data_dir)
    by_key = {(f.dataset, f.language, f.split): f for f in files}
    wanted = None if names is None else {name.lower().removeprefix(OWN) for name in names}
    found: dict[tuple[str, str], Task] = {}

    def add(name: str, mteb_split: str, subset: str, paths: list[Path], official: bool) -> None:
        if wanted is None or name.lower().removeprefix(OWN) in wanted:
            task = found.setdefault((name, mteb_split), Task(name, mteb_split, official=official))
            task.files[subset] = paths

    for file in files:
        whole = _WHOLE.get((file.dataset, file.language))
        if whole and file.split in whole[1]:
            parts = [by_key[key] for s in whole[1] if (key := (file.dataset, file.language, s)) in by_key]
            paths = [part.path for part in parts]
            if len(parts) == len(whole[1]) and _is_official(whole[0], "default", "test", paths):
                if split == "test" and file.split == "test":
                    add(whole[0], "test", "default", paths, official=True)
                continue
        candidates = [(name, subset, _mteb_split(name, file.split)) for name, subset in _official_names(file)]
        relevant = wanted is None or wanted & {
            file.dataset.lower(),
            *(name.lower() for name, _, _ in candidates),
        }
        if not relevant:
            continue
        official = [c for c in candidates if c[2] and _is_official(*c, [file.path])]
        for name, subset, mteb_split in official:
            reported = mteb_split == "test" or "test" not in mteb.get_task(name).metadata.eval_splits
            if reported == (split == "test"):
                add(name, mteb_split, subset, [file.path], official=True)
        if not official and (file.split == "test" if split == "test" else file.split in _DEV):
            add(OWN + file.dataset, file.split, file.language, [file.path], official=False)
    if wanted is None and not found:
        raise LacosError(f"--data-dir {data_dir} has no {split} split: its files are for another purpose.")
    return found


@cache
def _sts_tasks() -> dict[str, AbsTask]:
    tasks = mteb.get_tasks(task_types=["STS"], exclude_superseded=False)
    return {task.metadata.name.lower(): task for task in tasks}


def _official_names(file: LocalFile) -> list[tuple[str, str]]:
    """The MTEB (task, subset) pairs that a file's name points to; its rows decide later."""
    if (file.dataset, file.language) in _ALIASES:
        return _ALIASES[file.dataset, file.language]
    task = _sts_tasks().get(file.dataset.lower())
    if task is None:
        return []
    if task.metadata.is_multilingual:
        return [(task.metadata.name, file.language)] if file.language in task.metadata.hf_subsets else []
    own = {code.split("-")[0] for code in _script_codes(file.language)}
    return [(task.metadata.name, "default")] if own == set(task.metadata.languages) else []


def _mteb_split(name: str, split: str) -> str:
    """MTEB's name for a file's split, or '' where MTEB has none."""
    known = _statistics(name)
    if split in _DEV:
        return next((candidate for candidate in ("dev", "validation") if candidate in known), "")
    return split if split in known else ""


@cache
def _statistics(name: str) -> dict[str, Any]:
    return mteb.get_task(name).metadata.descriptive_stats or {}


def _is_official(name: str, subset: str, split: str, paths: list[Path]) -> bool:
    """Whether these files hold MTEB's rows: as many, with the same mean score to 0.005.

    The tolerance lets BIOSSES pass, whose published annotations differ in one mark of one pair (mean 2.198
    against 2.196); another selection of rows differs in number.
    """
    expected = _statistics(name)[split]
    if subset != "default":
        expected = expected["hf_subset_descriptive_stats"][subset]
    rows, mean = _count(paths)
    return rows == expected["num_samples"] and abs(mean - expected["label_statistics"]["avg_score"]) < 0.005


def _count(paths: list[Path]) -> tuple[int, float]:
    scores = [score for path in paths for _, _, score in read_pairs(path)]
    return len(scores), math.fsum(scores) / max(len(scores), 1)


def read_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    """Stream (sentence1, sentence2, score) from a `.jsonl` or `.jsonl.gz` file.

    Raises:
        LacosError: With file and line, if a line is no JSON object, lacks a column, has an empty sentence or
            a score that is no finite number; or if the file is truncated or not UTF-8.
    """
    table = open_file(path)
    for row in table.rows():
        problem = row.problem
        if problem is None:
            values = row.values
            needed = [name for name in _SCHEMA.names if name not in values]
            first, second, score = (values.get(name, "") for name in _SCHEMA.names)
            number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
            empty = [n for n in _SCHEMA.names[:2] if not isinstance(values.get(n), str) or not values[n].strip()]
            if needed:
                problem = f"no column {', '.join(needed)}; this row has {', '.join(values) or 'none'}."
            elif empty:
                problem = f"{empty[0]} must be a sentence, not {values[empty[0]]!r}."
            elif not number:
                problem = f"score must be a finite number, not {score!r}."
            else:
                yield first, second, float(score)
                continue
        raise DataError(f"{table.place(row.number)}: {problem}")


def read_tables(paths: Sequence[Path]) -> pa.Table:
    """Read files into one Arrow table (text as bytes, not as Python objects) and check that it can be scored.

    Raises:
        LacosError: For fewer than three pairs or a constant score, where no correlation exists.
    """
    batches, rows = [], []
    for path in paths:
        for pair in read_pairs(path):
            rows.append(pair)
            if len(rows) == SLICE_PAIRS:
                batches.append(_batch(rows))
                rows = []
    table = pa.Table.from_batches([*batches, _batch(rows)], schema=_SCHEMA)
    where = ", ".join(map(str, paths))
    if len(table) < 3:
        raise LacosError(
            f"{where}: {len(table)} pair{'s' if len(table) != 1 else ''}, but a correlation needs at least "
            "three. Add rows or leave the file out."
        )
    scores = table["score"].to_numpy()
    if scores.min() == scores.max():
        raise LacosError(
            f"{where}: all {len(table)} scores are {scores[0]:g}, so there is nothing to correlate with. "
            "Check that the score column is the annotators' similarity."
        )
    return table


def _batch(rows: list[tuple[str, str, float]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)


def _content(files: dict[str, list[Path]]) -> str:
    """A digest of the files, the part of a result's cache key that says which rows it was measured on."""
    digest = hashlib.sha256()
    for subset, paths in sorted(files.items()):
        digest.update(subset.encode())
        for path in paths:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@cache
def _script_codes(subset: str) -> list[str]:
    """MTEB's codes (`spa-Latn`) of a subset named by language (`es`) or languages (`es-en`, `en-es-wmt`)."""
    parts = dict.fromkeys(code for part in subset.split("-") if (code := _hf_lang_to_iso_lang_script(part)))
    if not parts:
        raise LacosError(f"{subset!r} in a file's name is no language: use ISO codes such as 'en' or 'en-ar'.")
    return list(parts)


def languages_of(task: str, subset: str) -> tuple[str, ...]:
    """The two-letter codes of a task's subset; three letters where there are no two.

    Example:
        >>> languages_of("STS17", "es-en"), languages_of("KLUE-STS", "default"), languages_of("local-x", "fr")
        (('en', 'es'), ('ko',), ('fr',))
    """
    official = _sts_tasks().get(task.lower())
    if official is None and subset == "default":
        official = mteb.get_task(task)  # a task of another type
    known = official.metadata.hf_subsets_to_langscripts.get(subset) if official is not None else None
    short = {three: two for two, three in _get_iso1_to_iso3().items()} | _MACRO
    codes = (code.split("-")[0] for code in known or _script_codes(subset))
    return tuple(sorted({short.get(code, code) for code in codes}))


def language_name(code: str) -> str:
    """English name of a language.

    Example:
        >>> language_name("es")
        'Spanish'
    """
    return str(ISO_TO_LANGUAGE.get(_get_iso1_to_iso3().get(code, code), code)).split(" (")[0]


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
