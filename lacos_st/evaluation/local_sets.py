"""Local evaluation files: their names, their rows, and whether these are the rows of an MTEB task.

A set is `<dataset>.<language>.<split>.jsonl[.gz]`, one object a line with `sentence1`, `sentence2`, `score`. Its rows
run under an official MTEB task and subset only where they *are* the official rows: the name has to point there,
and the number of rows and their mean score have to equal the descriptive statistics that MTEB ships. So a score
with an official name is comparable with published ones, and a look-alike (all 1,379 rows of KorSTS where MTEB
reads 1,376) never passes for it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lacos_st.data.columns import text_fault
from lacos_st.data.readers import DataError, open_file
from lacos_st.errors import LacosError, listed, shown
from lacos_st.evaluation.languages import official_task, script_codes, sts_tasks, two_letters
from lacos_st.files import check_directory

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

SLICE_PAIRS = 16_384
"""Pairs encoded at a time: two matrices of 16,384 x 1,024 floats are 134 MB."""

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
WHOLE = {("sick", "en"): ("SICK-R", ("train", "trial", "test"))}

DEV = ("dev", "validation", "val", "trial")

_NUMBER = re.compile(r"\s*[+-]?\d+([.,]\d+)?\s*")
_FILE = re.compile(r"(?P<dataset>[^.]+)\.(?P<language>[\w-]+)\.(?P<split>[\w-]+)\.jsonl(\.gz)?")

_SCHEMA = pa.schema([("sentence1", pa.string()), ("sentence2", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True)
class LocalFile:
    """One file of a data directory, named by its parts."""

    path: Path
    dataset: str
    language: str
    split: str

    def codes(self) -> list[str]:
        """MTEB's codes of its language or languages.

        Raises:
            LacosError: If the name holds no language.
        """
        try:
            return script_codes(self.language)
        except LacosError as reason:
            raise LacosError(f"{self.path}: {reason}") from None


def scan(data_dir: Path) -> list[LocalFile]:
    """List the evaluation files of a directory.

    Raises:
        LacosError: If the directory is missing or holds no file of the right name.
    """
    check_directory(data_dir, "--data-dir")
    found = []
    for path in sorted(data_dir.iterdir()):
        parts = _FILE.fullmatch(path.name)
        if parts and path.is_file():
            found.append(LocalFile(path, parts["dataset"], parts["language"], parts["split"]))
    twice = {f"{file.dataset}.{file.language}.{file.split}.jsonl" for file in found if file.path.suffix == ".gz"}
    twice &= {file.path.name for file in found}
    if twice:
        raise LacosError(f"--data-dir {data_dir} has {min(twice)} and {min(twice)}.gz: which is it? Remove one.")
    if not found:
        folders = [path for path in sorted(data_dir.iterdir()) if path.is_dir()]
        below = [sub.name for sub in folders if any(_FILE.fullmatch(path.name) for path in sub.iterdir())]
        hint = f" Its folder {below[0]!r} has such files: name that." if below else ""
        raise LacosError(
            f"--data-dir {data_dir} has no file named <dataset>.<language>.<split>.jsonl or .jsonl.gz, "
            f"such as stsb.en.test.jsonl.gz.{hint}"
        )
    return found


def official_names(file: LocalFile) -> list[tuple[str, str]]:
    """The MTEB (task, subset) pairs that a file's name points to; its rows decide later."""
    if (file.dataset, file.language) in _ALIASES:
        return _ALIASES[file.dataset, file.language]
    task = sts_tasks().get(file.dataset.lower())
    if task is None:
        return []
    if task.metadata.is_multilingual:
        return [(task.metadata.name, file.language)] if file.language in task.metadata.hf_subsets else []
    own = {code.split("-")[0] for code in file.codes()}
    return [(task.metadata.name, "default")] if own == set(task.metadata.languages) else []


def meanings(dataset: str) -> dict[str, list[str]]:
    """The MTEB tasks that a data set's name alone could stand for, with their languages.

    >>> sorted(meanings("STSB"))
    ['RonSTS', 'STSB', 'STSBenchmark', 'STSBenchmarkMultilingualSTS']
    """
    found: dict[str, list[str]] = {}
    whole = {key: [(task, "default")] for key, (task, _) in WHOLE.items()}
    for (name, language), tasks in sorted({**_ALIASES, **whole}.items()):
        for task, _ in tasks if name == dataset.lower() else ():
            found.setdefault(task, []).append(language)
    own = sts_tasks().get(dataset.lower())
    if found and own is not None:
        found[own.metadata.name] = [two_letters(code) for code in own.metadata.languages]
    return found


def mteb_split(name: str, split: str) -> str:
    """MTEB's name for a file's split, or '' where MTEB has none."""
    known = _statistics(name)
    if split in DEV:
        return next((candidate for candidate in ("dev", "validation") if candidate in known), "")
    return split if split in known else ""


def is_reported(name: str, split: str) -> bool:
    """Whether a task's split is one to report, and not one to choose by: MTEB reports KLUE-STS on its validation split.

    >>> is_reported("KLUE-STS", "validation"), is_reported("STSBenchmark", "validation")
    (True, False)
    """
    official = official_task(name) if split in DEV else None
    return split not in DEV or (official is not None and "test" not in official.metadata.eval_splits)


@cache
def _statistics(name: str) -> dict[str, Any]:
    return sts_tasks()[name.lower()].metadata.descriptive_stats or {}


def is_official(name: str, subset: str, split: str, paths: list[Path]) -> bool:
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
            number = isinstance(score, int | float) and not isinstance(score, bool) and abs(score) < 1e300
            faults = [fault for n in _SCHEMA.names[:2] if n in values and (fault := text_fault(values[n], n))]
            if needed:
                problem = f"no column {', '.join(needed)}; this row has {listed(list(values)) or 'none'}."
            elif faults:
                problem = f"{faults[0]}."
            elif not number:
                hint = " (write 4.5 without quotes and with a point)" if _NUMBER.fullmatch(str(score)) else ""
                problem = f"score must be a finite number, not {shown(score)}{hint}."
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


def content(files: dict[str, list[Path]]) -> str:
    """A revision of the files: `local-` and their digest, which says which rows a result was measured on."""
    digest = hashlib.sha256()
    for subset, paths in sorted(files.items()):
        digest.update(subset.encode())
        for path in paths:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"local-{digest.hexdigest()[:16]}"


def own_metadata(
    kind: Literal["STS", "Retrieval"], name: str, split: str, files: dict[str, list[Path]], main_score: str
) -> TaskMetadata:
    """MTEB's metadata of files that are no task of its own.

    Args:
        kind: `STS` or `Retrieval`.
        name: The task's.
        split: Of all files.
        files: Subset, which is its languages, -> its files.
        main_score: MTEB's name of it.
    """
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description=f"Local {kind} files of {name}",
        dataset={"path": f"local/{name}", "revision": content(files)},
        type=kind,
        category="t2t",
        eval_splits=[split],
        eval_langs={subset: script_codes(subset) for subset in files},
        main_score=main_score,
    )
