"""`check_overlap(train, data_dir)`: training text that also stands in evaluation sets.

A pair of an STS set among the training pairs makes its score worthless; a single sentence (captions of Flickr30k
stand in SNLI, SICK and STS17 alike) helps a little and has to be reported. Both are looked for after Unicode
normalisation (NFKC), lower-casing, and stripping of punctuation, symbols and spaces, so that a tokenised copy
("it 's") is found too; pairs in either order, and all pairs among the texts of one row (anchor, positive,
negatives, captions).

Only 8-byte digests of the evaluation sentences are held (116,000 pairs: about 40 MB); training rows stream past
them, so the size of the training data does not matter. Two different sentences share a digest with probability
below 1e-6 for a million sentences on each side.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lacos_st.data.columns import NAMES
from lacos_st.data.readers import DataError, Table
from lacos_st.data.sources import open_source
from lacos_st.errors import LacosError
from lacos_st.evaluation.local_sets import read_pairs
from lacos_st.evaluation.tasks import SAMPLE, MissingDataError, plan

_EXAMPLES = 3
_TEXTS = 64  # of one row: a longer list is no group of sentences
_NO_TEXT = {*NAMES["label"], *NAMES["score"], "language", "lang", "split", "id"}


@dataclass(frozen=True)
class SetOverlap:
    """What one training source shares with one evaluation file.

    Attributes:
        source: The training source.
        file: The evaluation file.
        pairs: Scored pairs in the evaluation file.
        pairs_found: How many of them the source contains.
        sentences: Different sentences in the evaluation file.
        sentences_found: How many of them the source contains.
        examples: Up to three places in the source, pairs first.
    """

    source: str
    file: str
    pairs: int
    pairs_found: int
    sentences: int
    sentences_found: int
    examples: tuple[str, ...]


@dataclass
class Overlap:
    """The result of a check; print it for a table.

    Attributes:
        rows: Training source -> rows read.
        found: One entry for every source and evaluation file that share anything, most pairs first.
        files: Evaluation files that were compared.
    """

    rows: dict[str, int] = field(default_factory=dict)
    found: list[SetOverlap] = field(default_factory=list)
    files: int = 0

    @property
    def pairs(self) -> int:
        """Evaluation pairs that are in the training data, over all files."""
        return sum(entry.pairs_found for entry in self.found)

    @property
    def sentences(self) -> int:
        """Evaluation sentences that are in the training data, over all files."""
        return sum(entry.sentences_found for entry in self.found)

    def __str__(self) -> str:
        lines = [f"{sum(self.rows.values())} training rows against {self.files} evaluation files"]
        for entry in self.found:
            lines.append(
                f"{entry.source} / {entry.file}: {entry.pairs_found} of {entry.pairs} pairs, "
                f"{entry.sentences_found} of {entry.sentences} sentences"
            )
            lines.extend(f"    {example}" for example in entry.examples)
        verdict = (
            f"{self.pairs} evaluation pairs are in the training data: scores on those files say nothing. "
            "Remove these rows, or do not report the files."
            if self.pairs
            else f"No evaluation pair is in the training data; {self.sentences} single sentences are."
        )
        return "\n".join([*lines, verdict])


def check_overlap(
    train: Sequence[str | Path] | str | Path, data_dir: str | Path | None = None, *, progress: bool = False
) -> Overlap:
    """Look for evaluation text in training data.

    Args:
        train: Training files (.jsonl, .csv, .tsv, .txt, .parquet, the text ones also .gz) or Hub data sets. Every
            text of a row counts, lists included; labels, scores, languages, splits and ids do not.
        data_dir: Directory with evaluation files, named as for `evaluate`; test and dev splits, and SICK whole,
            are compared. None: the STS17 sample in the package.
        progress: Print a line to stderr every million rows.

    Returns:
        What was found, a source at a time.

    Raises:
        LacosError: If a file cannot be read; the message names file and line.

    Example:
        >>> found = check_overlap(SAMPLE / "sts17.en-en.test.jsonl.gz")
        >>> [(entry.file, entry.pairs_found) for entry in found.found][0]
        ('sts17.en-en.test.jsonl.gz', 250)
    """
    sources = [train] if isinstance(train, str | Path) else list(train)
    if not sources:
        raise LacosError("No training data was given: name at least one file or Hub data set.")
    index = _Index(_evaluation_files(Path(data_dir) if data_dir is not None else SAMPLE))
    overlap = Overlap(files=len(index.files))
    for source in map(str, sources):
        table = open_source(source)
        rows, found = _scan(table, index, progress)
        overlap.rows[source] = rows
        overlap.found.extend(found)
    overlap.found.sort(key=lambda entry: (-entry.pairs_found, -entry.sentences_found))
    return overlap


def normalised(text: str) -> str:
    """The form in which sentences are compared.

    Example:
        >>> normalised("It 's  a “Test”…") == normalised("it's a test")
        True
    """
    return "".join(unicodedata.normalize("NFKC", text).lower().translate(_punctuation()).split())


@cache
def _punctuation() -> dict[int, None]:
    return {code: None for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "PS"}


def _digest(text: str) -> bytes:
    plain = normalised(text)
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest() if plain else b""


def _pair(first: bytes, second: bytes) -> bytes:
    return min(first, second) + max(first, second)


def _evaluation_files(data_dir: Path) -> list[Path]:
    """Every file that some task of either split reads."""
    found: dict[Path, None] = {}
    for split in ("test", "dev"):
        try:
            planned = plan(None, None, data_dir, split)
        except MissingDataError:
            if split == "test":
                raise
            continue  # a directory without dev sets is as good
        found |= dict.fromkeys(path for task in planned for paths in task.files.values() for path in paths)
    return sorted(found)


class _Index:
    """Digest -> the evaluation files that it stands in, for sentences and for pairs."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.sentences: dict[bytes, tuple[int, ...]] = {}
        self.pairs: dict[bytes, tuple[int, ...]] = {}
        self.sizes: list[tuple[int, int]] = []
        for number, path in enumerate(files):
            seen: set[bytes] = set()
            rows = 0
            for first, second, _ in read_pairs(path):
                digests = _digest(first), _digest(second)
                rows += 1
                key = _pair(*digests)
                self.pairs[key] = (*self.pairs.get(key, ()), number)
                seen.update(digests)
            for digest in seen:
                self.sentences[digest] = (*self.sentences.get(digest, ()), number)
            self.sizes.append((rows, len(seen)))


def _scan(table: Table, index: _Index, progress: bool) -> tuple[int, list[SetOverlap]]:
    sentences: set[bytes] = set()
    pairs: set[bytes] = set()
    examples: dict[int, list[str]] = {}
    rows = 0
    for row in table.rows():
        if row.problem is not None:  # what cannot be read cannot be called clean
            raise DataError(f"{table.place(row.number)}: {row.problem}")
        rows += 1
        if progress and rows % 1_000_000 == 0:
            print(f"{table.name}: {rows} rows", file=sys.stderr, flush=True)
        texts = [(digest, text) for text in _texts(row.values) if (digest := _digest(text))]
        known = [(digest, text) for digest, text in texts if digest in index.sentences]
        sentences.update(digest for digest, _ in known)
        for (first, one), (second, other) in itertools.combinations(known, 2):
            key = _pair(first, second)
            if key in index.pairs and key not in pairs:
                pairs.add(key)
                for number in set(index.pairs[key]):
                    places = examples.setdefault(number, [])
                    if len(places) < _EXAMPLES:
                        places.append(f"pair at {table.place(row.number)}: {_short(f'{one} | {other}')}")
    found_pairs = Counter(number for key in pairs for number in index.pairs[key])
    found_sentences = Counter(number for digest in sentences for number in index.sentences[digest])
    return rows, [
        SetOverlap(
            table.name,
            index.files[number].name,
            index.sizes[number][0],
            found_pairs[number],
            index.sizes[number][1],
            found_sentences[number],
            tuple(examples.get(number, ())),
        )
        for number in sorted(found_sentences)
    ]


def _texts(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in itertools.islice(values.items(), _TEXTS):
        if name.strip().lower() in _NO_TEXT:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (item for item in value[:_TEXTS] if isinstance(item, str))


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
