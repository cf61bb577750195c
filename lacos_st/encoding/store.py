"""Embeddings on disk: a partial file that survives interruption, and its final form.

`PartialFile` is an .npy file of which the first `done` rows are written, and a JSON record beside it that
says so and under which plan. A chunk is appended and synced before the record moves on, so the record never
promises more than is there; what lies beyond it is cut off on the next start. `finish` turns the complete
file into the output: by renaming it, or in a streaming pass for Parquet and for int8 (whose ranges are those
of all rows).
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lacos_st.errors import LacosError
from lacos_st.files import atomic, write_json

logger = logging.getLogger(__name__)


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Say what to do when writing fails."""
    try:
        yield
    except OSError as error:
        raise LacosError(
            f"{output} cannot be written: {error.strerror or error}. What was encoded is kept: mend this, and run "
            "the same command again to go on."
        ) from error


def stored_as(dimension: int, precision: str) -> tuple[int, np.dtype]:
    """Width and type of a row of the partial file."""
    if precision.endswith("binary"):
        return -(-dimension // 8), np.dtype(np.int8 if precision == "binary" else np.uint8)
    return dimension, np.dtype(np.float16 if precision == "float16" else np.float32)


def bytes_of(dimension: int, precision: str) -> int:
    """Bytes of an embedding in the output.

    Example:
        >>> [bytes_of(512, precision) for precision in ("float32", "float16", "int8", "ubinary")]
        [2048, 1024, 512, 64]
    """
    return -(-dimension // 8) if precision.endswith("binary") else dimension * np.dtype(precision).itemsize


def quantized(embeddings: np.ndarray, precision: str, ranges: np.ndarray | None = None) -> np.ndarray:
    """(rows, dimension) float32 in another precision.

    Args:
        embeddings: What the model gave.
        precision: What is wanted.
        ranges: (2, dimension), for int8 and uint8: what lies beyond becomes the nearest end.

    Raises:
        LacosError: A number is too large for float16.
    """
    if precision == "float32":
        return embeddings
    if precision != "float16":
        from sentence_transformers import quantize_embeddings

        return np.asarray(quantize_embeddings(embeddings, precision=precision, ranges=ranges))
    with np.errstate(over="ignore"):
        half = embeddings.astype(np.float16)
    if not np.isfinite(half).all():
        raise LacosError(
            f"precision='float16' ends at 65,504, and the embeddings reach {np.abs(embeddings).max():,.0f}: use "
            "normalize, or float32."
        )
    return half


def packed(embeddings: np.ndarray, precision: str) -> np.ndarray:
    """What can be quantised row by row already is in the partial file."""
    return embeddings if precision in ("int8", "uint8") else quantized(embeddings, precision)


class PartialFile:
    """`X.partial`, an .npy file with its first `done` rows written, and `X.progress.json`, which says so."""

    def __init__(
        self, output: Path, plan: dict[str, Any], shape: tuple[int, int], dtype: np.dtype, resume: bool
    ) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.progress = output.with_name(f"{output.name}.progress.json")
        self.plan, self.shape, self.dtype = plan, shape, dtype
        self.output = output
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self.header = header.getvalue()
        with disk_errors(output):
            self.done = self._done() if resume else 0
            if self.done == 0:
                self._begin()

    def _begin(self) -> None:
        self.progress.unlink(missing_ok=True)
        with self.path.open("wb") as file:
            file.write(self.header)
            file.flush()
            os.fsync(file.fileno())
        self._save()

    def _end(self, done: int) -> int:
        """Where the header and so many rows end."""
        return len(self.header) + done * self.shape[1] * self.dtype.itemsize

    def _done(self) -> int:
        """Rows of an interrupted run that can be kept."""
        try:
            record = json.loads(self.progress.read_text(encoding="utf-8"))
            done, plan = int(record["done"]), dict(record["plan"])
        except FileNotFoundError:
            return 0
        except (ValueError, TypeError, KeyError):  # we write it whole or not at all: something else did this
            logger.warning("%s is damaged; starting over.", self.progress)
            return 0
        if not done:
            return 0
        differing = [key for key in self.plan if plan.get(key) != self.plan[key]]
        if differing:
            changes = "; ".join(f"{key}: {plan.get(key)!r}, now {self.plan[key]!r}" for key in differing)
            raise LacosError(
                f"{self.output} was begun with other settings ({changes}), so going on would mix two results. "
                "Run again with the same input, model and options, or start over with resume=False (--no-resume)."
            )
        if not self.path.exists() or self.path.stat().st_size < self._end(done):
            logger.warning("%s is missing or cut short; starting over.", self.path)
            return 0
        return done

    def __enter__(self) -> PartialFile:
        self.file = self.path.open("rb+", buffering=0)  # else close() would try again what a full disk refused
        self.file.truncate(self._end(self.done))
        self.file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, rows: np.ndarray) -> None:
        """Add rows; they count once they are on the disk."""
        with disk_errors(self.output):
            rest = memoryview(np.ascontiguousarray(rows, self.dtype).tobytes())
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
            self.done += len(rows)
            self._save()

    def _save(self) -> None:
        write_json(self.progress, {"plan": self.plan, "done": self.done})

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read the rows again, so many at a time."""
        with self.path.open("rb") as file:
            file.seek(len(self.header))
            while data := file.read(size * self.shape[1] * self.dtype.itemsize):
                yield np.frombuffer(data, self.dtype).reshape(-1, self.shape[1])


def finish(partial: PartialFile, ids: Iterable[int | str], precision: str, chunk_size: int) -> None:
    """Turn the complete partial file into the output.

    Args:
        partial: All rows.
        ids: One for each row, in order; all integers or all strings. Used by Parquet only.
        precision: What the output holds.
        chunk_size: Rows read at a time, and rows in a row group of Parquet.
    """
    output, scaled = partial.output, precision in ("int8", "uint8")
    with disk_errors(output):
        chunks = _scaled(partial, precision, chunk_size) if scaled else partial.chunks(chunk_size)
        if output.suffix == ".parquet":
            with atomic(output) as temporary:
                _write_parquet(temporary, chunks, iter(ids))
        elif scaled:
            header = {"descr": np.dtype(precision).str, "fortran_order": False, "shape": partial.shape}
            with atomic(output) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for rows in chunks:
                    file.write(rows.tobytes())
        else:
            partial.path.replace(output)
        partial.path.unlink(missing_ok=True)
        partial.progress.unlink()


def _scaled(partial: PartialFile, precision: str, chunk_size: int) -> Iterator[np.ndarray]:
    """Quantise to the range of each dimension over all rows, and write the ranges."""
    low = np.min([rows.min(axis=0) for rows in partial.chunks(chunk_size)], axis=0)
    high = np.max([rows.max(axis=0) for rows in partial.chunks(chunk_size)], axis=0)
    ranges = np.stack([low, high])
    with (
        atomic(partial.output.with_name(f"{partial.output.stem}.ranges.npy")) as temporary,
        temporary.open("wb") as file,
    ):
        np.save(file, ranges)
    for rows in partial.chunks(chunk_size):
        yield quantized(rows, precision, ranges)


def _write_parquet(path: Path, chunks: Iterator[np.ndarray], ids: Iterator[int | str]) -> None:
    import pyarrow.parquet as pq

    writer = None
    for rows in chunks:
        table = as_table(list(islice(ids, len(rows))), {"embedding": rows})
        writer = writer or pq.ParquetWriter(path, table.schema, **parquet_options(table.schema))
        writer.write_table(table)
    if writer is not None:
        writer.close()


def as_table(ids: list[int | str], columns: dict[str, np.ndarray]) -> Any:
    """An Arrow table of ids and of embeddings, each a list of fixed size."""
    import pyarrow as pa

    lists = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        for name, rows in columns.items()
    }
    return pa.table({"id": pa.array(ids), **lists})


def parquet_options(schema: Any) -> dict[str, Any]:
    """How embeddings are written. Parquet has no number of one byte: a dictionary of 256 values makes one of four."""
    import pyarrow as pa

    lists = {name: kind.value_type for name, kind in zip(schema.names, schema.types, strict=True) if name != "id"}
    bytewide = [name for name, kind in lists.items() if kind in (pa.int8(), pa.uint8())]
    return {
        "use_dictionary": [f"{name}.list.element" for name in bytewide] or False,
        "write_statistics": False,
        "write_page_checksum": True,
    }


def check_space(output: Path, needed: int) -> None:
    """Fail before hours of work rather than after them."""
    free = shutil.disk_usage(output if output.is_dir() else output.absolute().parent).free
    if needed > free:
        raise LacosError(
            f"{output} needs {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free there. Free some, choose "
            "another place, or use truncate_dim or precision='ubinary'."
        )
