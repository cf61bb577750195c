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

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacos_st.data.readers import DataError, open_file
from lacos_st.encoding.encoder import Encoder, Precision, check_devices, check_numbers, check_precision, check_prompt
from lacos_st.encoding.source import content, scan
from lacos_st.encoding.store import PartialFile, bytes_of, check_space, finish, packed, stored_as
from lacos_st.errors import LacosError
from lacos_st.files import locked

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


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
        precision: As in `SentenceTransformer.encode`, or float16. int8 and uint8 are scaled to the range of each
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
    check_numbers(batch_size=batch_size, chunk_size=chunk_size, truncate_dim=truncate_dim)
    check_precision(precision)
    if output.suffix not in (".npy", ".parquet"):
        raise LacosError(f"The output {str(output)!r} must end in .npy or .parquet.")
    if output.suffix == ".npy" and id_column is not None:
        raise LacosError(f"An .npy file holds no ids: write .parquet, or leave id_column={id_column!r} away.")
    check_prompt(model, prompt_name)
    if devices is not None:
        check_devices([devices] if isinstance(devices, str) else devices)
    table = open_file(input)
    before = os.stat(input)
    if output.exists() and output.samefile(input):
        raise LacosError(f"The output {str(output)!r} is the input itself, which would be lost: choose another name.")
    with locked(output):
        source = scan(table, column, id_column, wanted_ids=output.suffix == ".parquet")
        encoder = Encoder(model, batch_size, normalize, prompt_name, truncate_dim, devices)
        if output.exists():
            logger.warning("%s exists already and is replaced when this run is done.", output)
        width, dtype = stored_as(encoder.dimension, precision)
        plan: dict[str, Any] = {
            "input": content(input),
            "rows": source.rows,
            "column": source.column,
            "id_column": source.id_column,
            "chunk_size": chunk_size,
            "precision": precision,
            **encoder.plan(),
        }
        partial = PartialFile(output, plan, (source.rows, width), dtype, resume)
        start = partial.done
        needed = (source.rows - start) * width * dtype.itemsize
        if output.suffix == ".parquet" or precision in ("int8", "uint8"):
            needed += source.rows * bytes_of(encoder.dimension, precision)
        check_space(output, needed)
        texts = (text for text, _ in islice(source.texts(), start, None))
        with encoder, partial, progress(source.rows, start, show_progress) as bar:
            while chunk := list(islice(texts, chunk_size)):
                embeddings = encoder.encode_checked(chunk, partial.done, str(input))
                partial.append(packed(embeddings, precision))
                bar.update(len(chunk))
        after = os.stat(input)
        if partial.done != source.rows or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{input} changed while it was encoded. Start over with resume=False (--no-resume).")
        finish(partial, source.ids(), precision, chunk_size)
    return EncodeResult(output, source.rows, width, source.empty, start)


@contextmanager
def progress(total: int, start: int, show: bool, unit: str = "texts") -> Iterator[Any]:
    """A bar that counts what is done."""
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=start, unit=f" {unit}", disable=not show, smoothing=0.05) as bar:
        yield bar
