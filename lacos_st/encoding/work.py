"""What Ray's processes do: check a file, cut it into parts, encode one part.

A reader sends a part as an Arrow table of one row, whose cells are lists. An actor answers with the name of the file
that it has written. Nothing here knows how many others there are.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lacos_st.data.readers import DataError, open_file
from lacos_st.encoding.encoder import Encoder, Precision, check_prompt
from lacos_st.encoding.parts import part_name
from lacos_st.encoding.source import Source, content, scan
from lacos_st.encoding.store import as_table, disk_errors, parquet_options, quantized
from lacos_st.errors import LacosError, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from sentence_transformers import SentenceTransformer

_CHUNK = 4096  # rows that are sorted by length together, as in `encode_file`
_TRIES = 5  # actors that may die over a part
Model = str | Path | Callable[[], "SentenceTransformer"]


@dataclass
class File:
    """An input, checked."""

    path: str
    digest: str
    stamp: list[int]
    rows: int
    empty: int
    column: str
    id_column: str | None
    integer_ids: bool

    def parts(self, size: int) -> Iterator[tuple[str, int]]:
        """Yield the names of the parts and their rows."""
        for number, start in enumerate(range(0, self.rows, size)):
            yield part_name(self.digest, number), min(size, self.rows - start)


def scanned(path: str, column: str | None, id_column: str | None, sample: int) -> tuple[File, list[tuple[float, str]]]:
    """A file, checked, and the texts of it that a sample of all may hold."""
    stamp = _stamp(path)
    source = scan(open_file(path), column, id_column, wanted_ids=True)
    digest = content(path)[:16]
    draw = random.Random(digest)
    texts = heapq.nsmallest(sample, ((draw.random(), text) for text, _ in source.texts())) if sample else []
    file = File(path, digest, stamp, source.rows, source.empty, source.column, source.id_column, source.integer_ids)
    _unchanged(file)
    return file, texts


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _unchanged(file: File) -> None:
    try:
        same = _stamp(file.path) == file.stamp
    except OSError as error:
        raise DataError(f"{file.path} cannot be read any more: {error.strerror}.") from error
    if not same:
        raise DataError(f"{file.path} changed while it was encoded. Start over with resume=False (--no-resume).")


@dataclass
class Job:
    """What an actor is told once."""

    model: Model
    options: dict[str, Any]
    columns: dict[str, Precision]
    part_size: int
    output: Path
    staged: Path
    integer_ids: bool = True
    ranges: np.ndarray | None = None
    model_plan: dict[str, Any] | None = None


class Actor:
    """A model, and what is done with it: `__call__` encodes one part."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded at the first use and not with the object: an error in here then comes through as it is."""
        model = self.job.model
        if isinstance(model, str | Path):
            from lacos_st.model.model import LacosSentenceTransformer

            loaded: SentenceTransformer = LacosSentenceTransformer(str(model))
        else:
            loaded = model()
        check_prompt(loaded, self.job.options["prompt_name"])
        encoder = Encoder(loaded, **self.job.options)
        plan, wanted = encoder.plan(), self.job.model_plan or {}
        other = [
            f"{key}: {shown(plan[key])} instead of {shown(wanted[key])}" for key in wanted if plan[key] != wanted[key]
        ]
        if other:
            raise LacosError(
                f"On {socket.gethostname()} the model is not what it is elsewhere ({'; '.join(other)}). Machines must "
                "hold the same model and torch and be of one kind, or two results would be mixed."
            )
        return encoder

    def get(self, name: str, *arguments: Any) -> Any:
        """Call a method by its name."""
        return getattr(self, name)(*arguments)

    def model_plan(self) -> dict[str, Any]:
        """What of the model decides the numbers."""
        return self.encoder.plan()

    def ranges_of(self, texts: list[str]) -> np.ndarray:
        """(2, dimension): the lowest and the highest number in each."""
        rows = [self.encoder.encode_checked(texts[i : i + _CHUNK], i, "a sample") for i in range(0, len(texts), _CHUNK)]
        return np.stack([np.min([r.min(0) for r in rows], 0), np.max([r.max(0) for r in rows], 0)])

    def _begin(self, name: str, path: str, start: int, rows: int) -> Path:
        """A file for a part, beside those of actors that died over it: Ray would send it to one after another."""
        staged = self.job.staged
        if not staged.is_dir():
            raise LacosError(
                f"{staged} is not there on {socket.gethostname()}: it was deleted while `encode` ran, or this machine "
                "does not see it. All machines must see the output under one path. Run the same command again to go on."
            )
        if len(list(staged.glob(f"{name}.*"))) >= _TRIES:
            raise LacosError(
                f"{_TRIES} processes died over rows {start:,} to {start + rows:,} (from 0) of {path}, mostly a sign of "
                "too little memory: use fewer actors, a smaller batch_size or a larger machine, and run the same "
                "command again to go on. What was delivered is kept."
            )
        file = staged / f"{name}.{uuid.uuid4().hex[:8]}"
        with disk_errors(self.job.output):
            file.touch()
        return file

    def __call__(self, part: pa.Table) -> pa.Table:
        """Encode a part and write it; say under which name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name, path, start, ids, texts = (part[key][0].as_py() for key in ("part", "path", "start", "ids", "texts"))
        file = self._begin(name, path, start, len(texts))
        made: dict[str, list[np.ndarray]] = {key: [] for key in self.job.columns}
        for i in range(0, len(texts), _CHUNK):
            rows = self.encoder.encode_checked(texts[i : i + _CHUNK], start + i, path)
            for key, precision in self.job.columns.items():
                made[key].append(quantized(rows, precision, self.job.ranges))
        table = as_table(ids, {key: np.concatenate(rows) for key, rows in made.items()})
        with disk_errors(self.job.output), file.open("wb") as sink:
            pq.write_table(table, sink, **parquet_options(table.schema))
            sink.flush()
            os.fsync(sink.fileno())
        actor = f"{socket.gethostname()}:{os.getpid()}"
        return pa.table({"part": [name], "staged": [file.name], "actor": [actor]})


def read(request: pa.Table, part_size: int, integer_ids: bool) -> Iterator[pa.Table]:
    """The parts of a file that are not there yet, each a table of one row."""
    import pyarrow as pa

    record, there = json.loads(request["file"][0].as_py())
    file, done = File(**record), set(there)
    source = Source(open_file(file.path), file.column, file.id_column, integer_ids=integer_ids)
    texts = source.texts()
    for number, (name, count) in enumerate(file.parts(part_size)):
        start = number * part_size
        rows = list(islice(texts, count))
        _unchanged(file)
        if name in done:
            continue
        made = file.id_column is None
        ids = [f"{file.digest}-{start + i}" if made else source.as_id(key) for i, (_, key) in enumerate(rows)]
        column = pa.array([ids], pa.list_(pa.int64() if integer_ids and not made else pa.large_string()))
        yield pa.table(
            {
                "part": [name],
                "path": [file.path],
                "start": [start],
                "ids": column,
                "texts": pa.array([[text for text, _ in rows]], pa.list_(pa.large_string())),
            }
        )
