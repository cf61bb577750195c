"""`encode_file`: a corpus in, embeddings out, in bounded memory; the same bytes however often interrupted.

1. **First pass** over the input: count the rows, check each (UTF-8, column, type), hash the file. A mistake in
   line 900,000 is reported after a second, not after a night.
2. **Chunks** of `chunk_size` rows go through `model.encode`, which sorts each by length. Their borders depend on the
   row numbers alone, never on where a run was interrupted, so every chunk is computed from the same batches. Its
   embeddings are appended to `OUTPUT.partial` and synced, then `OUTPUT.progress.json` moves on: after SIGKILL, a full
   disk or a power cut the next run cuts the partial file back to the last complete chunk and goes on.
3. **The end**: `.npy` in float32 or binary is the partial file itself, renamed. Parquet and int8 are written from it
   in a streaming pass (ids come from the input, int8 ranges from all rows) and renamed.

A run goes on only where it would give the same bytes: same input (content), model (content), options, kind of
device and torch; otherwise an error says what differs. Plain writes rather than a writable memory map: on a
full disk those raise an error, where a map kills the process (SIGBUS), and mapped pages would count as this
process' memory. Memory: one chunk of texts and embeddings; at 4,096 x 1,024 x 4 bytes, 17 MB beside the
model.

An empty text (also null, or white space alone) is not given to the model; its row is all zeros, so its cosine
with everything is 0 and row i stays line i.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lacos_st.data.columns import NAMES, text_fault
from lacos_st.data.doubts import check_header
from lacos_st.data.readers import DataError, Table, open_file
from lacos_st.encoding.store import PartialFile, check_space, finish, packed, stored_as
from lacos_st.errors import LacosError, listed, shortened, shown
from lacos_st.files import locked
from lacos_st.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
_ID_NAMES = ("id", "_id")


@dataclass
class EncodeResult:
    """What `encode_file` wrote.

    Attributes:
        output: The file.
        rows: Embeddings in it, one for each row of the input.
        dimension: Width of a row (of bytes, for binary precisions).
        empty: Rows without text; their embeddings are zero.
        resumed_at: Rows that an earlier run had encoded.
    """

    output: Path
    rows: int
    dimension: int
    empty: int
    resumed_at: int

    def __str__(self) -> str:
        rest = [f"{self.empty:,} without text"] * bool(self.empty)
        rest += [f"{self.resumed_at:,} from an earlier run"] * bool(self.resumed_at)
        return f"Wrote {self.output}: {', '.join([f'{self.rows:,} rows of {self.dimension}', *rest])}"


def encode_file(
    model: SentenceTransformer,
    input: str | Path,
    output: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    batch_size: int = 32,
    chunk_size: int = 4096,
    precision: Precision = "float32",
    normalize: bool = False,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    devices: str | Sequence[str] | None = None,
    resume: bool = True,
    show_progress: bool = True,
) -> EncodeResult:
    """Encode a file of texts into a file of embeddings.

    Args:
        model: Any sentence-transformers model.
        input: Text (a line is a text; row i is line i), CSV, TSV or JSON lines, each also .gz, or Parquet.
        output: `X.npy`: (rows, dimension), to be opened with `np.load(..., mmap_mode="r")`; or `X.parquet`:
            columns `id` and `embedding`. An existing file is replaced when all is done, a missing directory
            made. Beside it, until then: `X.partial`, `X.progress.json`, `X.lock`.
        column: The column of texts. Default: the only one, or one named text, sentence or line.
        id_column: The column of ids, for Parquet output; integers stay integers. Default: `id` or `_id` if
            there is one, else the row number from 0.
        batch_size: Texts in one forward pass.
        chunk_size: Rows between two savings of the state; sorted by length inside.
        precision: As in `SentenceTransformer.encode`. int8 and uint8 are scaled to the range of each
            dimension over the whole file; the ranges (2, dimension), needed to quantise queries alike and to turn
            numbers back before they are compared (raw, dimensions of unlike ranges weigh alike), go to
            `X.ranges.npy`.
        normalize: Scale embeddings to length 1.
        prompt_name: One of `model.prompts`. Default: the model's default prompt.
        truncate_dim: Keep the first dimensions only.
        devices: One device, or several for sentence-transformers' own process pool. Default: the model's.
        resume: Go on with an interrupted run; False deletes what it left.
        show_progress: Show a progress bar.

    Returns:
        An `EncodeResult`.

    Raises:
        DataError: The input cannot be read; named with file and line.
        LacosError: The output cannot be written, is being written by another process, or belongs to an
            interrupted run with other settings; or the model gave NaN.
    """
    output = Path(output)
    for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size), ("truncate_dim", truncate_dim)):
        if value is not None and value < 1:
            raise LacosError(f"{name}={value} must be at least 1.")
    if precision not in get_args(Precision):
        raise LacosError(f"precision={precision!r} is not one of {', '.join(get_args(Precision))}.")
    if output.suffix not in (".npy", ".parquet"):
        raise LacosError(f"The output {str(output)!r} must end in .npy or .parquet.")
    if output.suffix == ".npy" and id_column is not None:
        raise LacosError(f"An .npy file holds no ids: write .parquet, or leave id_column={id_column!r} away.")
    if prompt_name is not None and prompt_name not in model.prompts:
        raise LacosError(
            f"The model has no prompt {shown(prompt_name)}, but {shortened(', '.join(model.prompts)) or 'none'}."
        )
    if devices is not None:
        _check_devices([devices] if isinstance(devices, str) else devices)
    table = open_file(input)
    before = os.stat(input)
    if output.exists() and output.samefile(input):
        raise LacosError(f"The output {str(output)!r} is the input itself, which would be lost: choose another name.")
    with locked(output):
        source = _scan(table, column, id_column, wanted_ids=output.suffix == ".parquet")
        encoder = _Encoder(model, batch_size, normalize, prompt_name, truncate_dim, devices)
        if truncate_dim is not None and truncate_dim > encoder.dimension:
            raise LacosError(
                f"truncate_dim={truncate_dim} is more than the {encoder.dimension} dimensions of the embeddings: leave "
                "it out, or choose a smaller one."
            )
        if output.exists():
            logger.warning("%s exists already and is replaced when this run is done.", output)
        width, dtype = stored_as(encoder.dimension, precision)
        plan: dict[str, Any] = {
            "input": _content(input),
            "rows": source.rows,
            "column": source.column,
            "id_column": source.id_column,
            "model": fingerprint(model),
            "prompt": model.prompts.get(prompt_name or model.default_prompt_name or ""),
            "batch_size": batch_size,
            "chunk_size": chunk_size,
            "precision": precision,
            "normalize": normalize,
            "dimension": encoder.dimension,
            "devices": encoder.kind,
            "torch": encoder.torch_version,
        }
        partial = PartialFile(output, plan, (source.rows, width), dtype, resume)
        start = partial.done
        check_space(output, partial, precision)
        texts = (text for text, _ in islice(source.texts(), start, None))
        with encoder, partial, _progress(source.rows, start, show_progress) as bar:
            while chunk := list(islice(texts, chunk_size)):
                embeddings = encoder.encode(chunk)
                bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
                if len(bad):
                    raise LacosError(
                        f"The model gave NaN or infinity for row {partial.done + int(bad[0])} (from 0) of {input}: "
                        f"{chunk[bad[0]][:60]!r}. Load it in bfloat16 or float32."
                    )
                partial.append(packed(embeddings, precision))
                bar.update(len(chunk))
        after = os.stat(input)
        if partial.done != source.rows or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{input} changed while it was encoded. Start over with resume=False (--no-resume).")
        finish(partial, source.ids(), precision, chunk_size)
    return EncodeResult(output, source.rows, width, source.empty, start)


@dataclass
class _Source:
    """The texts of the input, checked; to be iterated as often as needed."""

    table: Table
    column: str
    id_column: str | None
    rows: int = 0
    empty: int = 0
    integer_ids: bool = True

    def texts(self) -> Iterator[tuple[str, Any]]:
        """Yield (text, id) of each row.

        Raises:
            DataError: A row cannot be read.
        """
        columns = [self.column] + ([self.id_column] if self.id_column not in (None, self.column) else [])
        for row in self.table.rows(columns):
            problem = row.problem
            if problem is None:
                missing = [name for name in columns if name not in row.values]
                text = row.values.get(self.column)
                key = row.values.get(self.id_column) if self.id_column else None
                if missing:
                    problem = f"has no column {shown(missing[0])} (it has {listed(list(row.values))})"
                else:
                    problem = text_fault(text, self.column, may_be_blank=True)
                if self.id_column and key is None and problem is None:
                    problem = f"the id in column {shown(self.id_column)} is missing"
            if problem is not None:
                raise DataError(f"{self.table.place(row.number)}: {problem}. Mend the row or take it out.")
            yield text if isinstance(text, str) else "", key

    def ids(self) -> Iterator[int | str]:
        """Yield the ids: the column's, as integers if all are, else as strings; or the row numbers."""
        for number, (_, key) in enumerate(self.texts()):
            yield number if self.id_column is None else key if self.integer_ids else str(key)


def _scan(table: Table, column: str | None, id_column: str | None, wanted_ids: bool) -> _Source:
    """First pass: choose the columns, check and count the rows."""
    names = list(table.first().values)
    if column is None:
        known = [name for name in names if name.lower() in NAMES["text"]]
        if not known and len(names) == 1 and table.kind in ("csv", "tsv"):
            check_header(table, names, f"column={names[0]!r}")
        column = known[0] if known else names[0] if len(names) == 1 else None
    if wanted_ids and id_column is None:
        id_column = next((name for name in _ID_NAMES if name in names and name != column), None)
    for what, name in (("column", column), ("id_column", id_column)):
        if name not in names and not (what == "id_column" and name is None):
            wanted = "cannot tell which column holds the texts" if name is None else f"there is no column {shown(name)}"
            has, flag = listed(names), what.replace("_", "-")
            raise DataError(f"{table.name}: {wanted}; it has {has}. Name it with {what}=... (--{flag} ...).")
    source = _Source(table, str(column), id_column)
    for text, key in source.texts():
        source.rows += 1
        source.empty += not text.strip()
        if key is not None and (type(key) is not int or abs(key) >= 2**63):
            source.integer_ids = False
    return source


def _content(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


class _Encoder:
    """`model.encode` with fixed options, for one device or a pool of processes."""

    def __init__(
        self,
        model: SentenceTransformer,
        batch_size: int,
        normalize: bool,
        prompt_name: str | None,
        truncate_dim: int | None,
        devices: str | Sequence[str] | None,
    ) -> None:
        import torch

        self.model = model
        self.pool: Any = None
        self.devices = [devices] if isinstance(devices, str) else list(devices or [])
        self.options = {
            "batch_size": batch_size,
            "normalize_embeddings": normalize,
            "prompt_name": prompt_name,
            "truncate_dim": truncate_dim,
            "show_progress_bar": False,
        }
        first = self.devices[0] if self.devices else None
        self.dimension = int(model.encode(["a"], device=first, **self.options).shape[1])
        kinds = [torch.device(name).type for name in self.devices] or [model.device.type]
        self.kind = ",".join(kinds)
        self.torch_version = str(torch.__version__)

    def __enter__(self) -> _Encoder:
        if len(self.devices) > 1:
            self.pool = self.model.start_multi_process_pool(self.devices)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.model.stop_multi_process_pool(self.pool)

    def encode(self, texts: list[str]) -> np.ndarray:
        """(len(texts), dimension) float32; zeros for empty texts."""
        result = np.zeros((len(texts), self.dimension), np.float32)
        rows = [i for i, text in enumerate(texts) if text.strip()]
        if rows:
            where = {"pool": self.pool} if self.pool else {"device": self.devices[0] if self.devices else None}
            result[rows] = self.model.encode([texts[i] for i in rows], **where, **self.options)
        return result


def _check_devices(names: Sequence[str]) -> None:
    import torch

    for name in names:
        try:
            torch.zeros(1, device=name).cpu()  # which "meta" cannot
        except (RuntimeError, AssertionError) as error:
            raise LacosError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


@contextmanager
def _progress(total: int, start: int, show: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=start, unit=" texts", disable=not show, smoothing=0.05) as bar:
        yield bar
