"""`encode_files`: many files of texts in, a directory of embeddings out, by actors of Ray Data.

Ray Data does what a cluster needs: it starts actors, which load the model once each, gives them work as they are
free, holds readers back while actors are busy, and starts anew what died. What is here says what a piece of work is:

1. **Check**: each file is read once, by as many processes as there are: columns, every row, a digest.
2. **Parts**: a file is cut into parts of `part_size` rows. A part is *one row* of the Ray data set (a list of texts),
   which Ray never splits or joins. An actor encodes it, writes it to a file of its own, and passes on its name.
3. **Deliver**: this process, the only one, renames that file to the part's name (`parts.py`).

A part that was computed twice, because an actor died or this process did, has the same name: each row is delivered
once. A killed run goes on by leaving out the parts that are there, if inputs, model and options are the same.

Why not Ray Data's own checkpoint by id (`DataContext.checkpoint_config`, read in Ray 2.60)? It filters the input by the
ids that are written, which a process holds all at once: memory grows with the rows done (docs/scale.md), ids that occur
twice in the input lose a row on resuming, and neither a changed input nor another model is noticed. Parts need
nothing but the names of files.

**int8** needs ranges before the first part is written, and a stream has no "all rows" to take them from, unless
it is kept in float32 on the way: 2 TB for a billion rows of 512. So they are those of a sample: `SAMPLE` rows, uniform
over all files (the rows with the smallest of seeded random numbers). Beyond them numbers become the nearest end: of
`n` rows about 2 in `n + 1` do, in each dimension. Up to `SAMPLE` rows they are those of all rows, as in `encode_file`.
`ranges` brings those of an earlier run.

Memory: this process holds a record a file and a name a part; a reader a part of texts; an actor the model and a part
of texts and embeddings.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lacos_st.data.readers import FORMATS, DataError, open_file
from lacos_st.encoding.cluster import connected, processors, share
from lacos_st.encoding.encode import progress
from lacos_st.encoding.encoder import Precision, check_numbers, check_precision
from lacos_st.encoding.parts import Parts
from lacos_st.encoding.source import choose
from lacos_st.encoding.store import bytes_of, check_space
from lacos_st.encoding.work import Actor, File, Job, Model, read, scanned
from lacos_st.errors import LacosError, listed
from lacos_st.files import locked

logger = logging.getLogger(__name__)
SAMPLE = 4096


@dataclass
class EncodedFiles:
    """What `encode_files` wrote.

    Attributes:
        output: The directory.
        rows: Embeddings in it, one for each row of the inputs.
        parts: Files that they are in.
        dimension: Of the model's embeddings, after `truncate_dim`.
        columns: Columns of embeddings.
        empty: Rows without text; their embeddings are zero.
        resumed_at: Rows that an earlier run had delivered.
        actors: Actors that computed, restarted ones counted anew.
    """

    output: Path
    rows: int
    parts: int
    dimension: int
    columns: list[str]
    empty: int
    resumed_at: int
    actors: int

    def __str__(self) -> str:
        rest = [f"{self.empty:,} without text"] * bool(self.empty)
        rest += [f"{self.resumed_at:,} from an earlier run"] * bool(self.resumed_at)
        what = f"{self.rows:,} rows of {self.dimension} in {self.parts:,} files ({', '.join(['id', *self.columns])})"
        return f"Wrote {self.output}: {', '.join([what, *rest])}"


def encode_files(
    model: Model,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    batch_size: int = 32,
    part_size: int = 16384,
    precision: Precision | Sequence[Precision] = "float32",
    ranges: str | Path | np.ndarray | None = None,
    normalize: bool = False,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    address: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    resume: bool = True,
    show_progress: bool = True,
) -> EncodedFiles:
    """Encode files of texts into a directory of Parquet files, by Ray on one machine or many.

    Inputs, output and a model that is a directory must be seen under the same path by all machines.

    Args:
        model: What `LacosSentenceTransformer` loads by name or path; or a function without arguments that makes any
            sentence-transformers model, which each actor calls.
        inputs: Files as for `encode_file`, and directories, which are read with what is below them (names that begin
            with `.` or `_` and other kinds of file are left out).
        output: A directory; its files have the columns `id` and `embedding` (of several precisions:
            `embedding_float32` and so on). `_lacos.json` says which input a file's name means, and whether all is done.
        column: The column of texts. Default: the only one, or one named text, sentence or line.
        id_column: The column of ids. Default: `id` or `_id` if there is one, else ids are made: 16 digits of the
            file's digest, `-` and the row from 0. Ids are taken as they are: those that occur twice are written twice.
        batch_size: Texts in one forward pass.
        part_size: Rows in a file of the output: what an actor loses when it dies.
        precision: One of `encode_file`'s, or several, each a column.
        ranges: For int8 and uint8, (2, dimension) or the .npy file of it. Default: those of a sample (see the head of
            this file), which `_ranges.npy` in the output keeps.
        normalize: Scale embeddings to length 1.
        prompt_name: One of the model's prompts. Default: its default prompt.
        truncate_dim: Keep the first dimensions only.
        address: A Ray cluster's, or `auto`. Default: the Ray that this process has started, else one of this
            machine, which ends with the call.
        actors: Processes that hold the model. Default: one for each GPU, else one for each machine.
        gpus_per_actor: GPUs of an actor, 0.5 for half of one. Default: 1 where there are GPUs. Without any,
            actors share the processors.
        resume: Go on with an interrupted run; False deletes what it left.
        show_progress: Show a progress bar.

    Returns:
        An `EncodedFiles`.

    Raises:
        DataError: An input cannot be read; named with file and line. Nothing has been encoded then.
        LacosError: Ray is missing or too small, the output cannot be written, is being written by another process or
            belongs to a run with other inputs or settings; or the model gave NaN.
    """
    output = Path(output).absolute()
    precisions: list[Precision] = [precision] if isinstance(precision, str) else list(dict.fromkeys(precision))
    for name in precisions:
        check_precision(name)
    if not precisions:
        raise LacosError("precision=[] asks for no column: name one or more, such as ['float32', 'ubinary'].")
    check_numbers(batch_size=batch_size, part_size=part_size, truncate_dim=truncate_dim, actors=actors)
    if gpus_per_actor is not None and (gpus_per_actor < 0 or (gpus_per_actor > 1 and gpus_per_actor % 1)):
        raise LacosError(f"gpus_per_actor={gpus_per_actor:g} must be a part of one GPU or a whole number of them.")
    if output.suffix in (".npy", ".parquet") and not output.is_dir():
        raise LacosError(f"Ray writes a directory of Parquet files, not the file {output.name!r}: name a directory.")
    paths = _files([inputs] if isinstance(inputs, str | Path) else inputs, output)
    choose(open_file(paths[0]), column, id_column, wanted_ids=True)  # a wrong name is told before Ray starts
    given = _given_ranges(ranges, precisions)
    if isinstance(model, str | Path) and Path(model).exists():
        model = Path(model).absolute()
    columns = {("embedding" if len(precisions) == 1 else f"embedding_{name}"): name for name in precisions}
    options = {
        "batch_size": batch_size,
        "normalize": normalize,
        "prompt_name": prompt_name,
        "truncate_dim": truncate_dim,
        "devices": None,
    }
    if show_progress:
        logger.info("Starting Ray ..." if address is None else "Connecting to Ray ...")
    with locked(output), nullcontext(Parts(output)) as parts, connected(address):
        actors, resources = share(actors, gpus_per_actor)
        job = Job(model, options, columns, part_size, output, parts.staged)
        with _prober(job, resources) as ask:
            job.model_plan = ask("model_plan")
            sample = SAMPLE if given is None and _scaled(precisions) else 0
            files, texts = _check(paths, column, id_column, sample, show_progress)
            job.integer_ids = all(file.integer_ids for file in files)
            dimension, total = int(job.model_plan["dimension"]), sum(file.rows for file in files)
            plan = {
                "inputs": {file.digest: file.path for file in files},
                "columns": sorted({file.column for file in files}),
                "id_columns": sorted({str(file.id_column) for file in files}),
                "part_size": part_size,
                "precision": precisions,
                "ranges": "of a sample" if given is None else _digest(given),
                **job.model_plan,
            }
            rows = {name: count for file in files for name, count in file.parts(part_size)}
            there = parts.begin(plan, rows, resume)
            start = sum(rows[name] for name in there)
            if _scaled(precisions):
                zeros = any(file.empty for file in files)
                job.ranges = parts.kept_ranges() if there else _ranges(given, dimension, ask, texts, zeros)
                if job.ranges is None:
                    raise LacosError(
                        f"{output / '_ranges.npy'} is gone, without which the parts that are there cannot be read. "
                        "Start over with resume=False (--no-resume)."
                    )
                parts.keep_ranges(job.ranges)
        check_space(output, (total - start) * sum(bytes_of(dimension, name) for name in precisions))
        used = set()
        encoded = _encoded(files, there, job, min(actors, max(len(rows) - len(there), 1)), resources)
        # closed, as the traceback of an error in here would keep its actors (cluster.py)
        with closing(encoded), progress(total, start, show_progress) as bar:
            for part in encoded:
                if part["part"] not in there:
                    parts.deliver(part["staged"], part["part"])
                    there.add(part["part"])
                    used.add(part["actor"])
                    bar.update(rows[part["part"]])
        parts.finish(plan, rows)
    empty = sum(file.empty for file in files)
    return EncodedFiles(output, total, len(rows), dimension, list(columns), empty, start, len(used))


def _files(inputs: Sequence[str | Path], output: Path) -> list[Path]:
    """The files that are meant, each once, in order."""
    found: list[Path] = []
    for given in inputs:
        path = Path(given).absolute()
        if not path.is_dir():
            open_file(path)
            found.append(path)
            continue
        if output.resolve().is_relative_to(path.resolve()):
            raise LacosError(f"The output {output} lies in the input {given}, where the next run would read it.")
        below = [p for p in sorted(path.rglob("*")) if p.is_file()]
        below = [p for p in below if not any(part[0] in "._" for part in p.relative_to(path).parts)]
        known = [p for p in below if set(p.suffixes[-2:]) & set(FORMATS)]
        if not known:
            raise DataError(f"{given} holds no file whose name ends in {', '.join(FORMATS)}.")
        if len(known) < len(below):
            others = [str(p.relative_to(path)) for p in below if p not in set(known)]
            logger.warning("%s: left out what is of another kind: %s.", given, listed(others))
        found += known
    if not found:
        raise LacosError("There are no inputs: name files or directories.")
    return list({path.resolve(): path for path in found}.values())


def _check(
    paths: list[Path], column: str | None, id_column: str | None, sample: int, show: bool
) -> tuple[list[File], list[str]]:
    """Read every file once, in many processes; also a uniform sample of the texts of all."""
    import ray.data

    def check(row: dict[str, str]) -> dict[str, str]:
        file, texts = scanned(row["path"], column, id_column, sample)
        return {"found": json.dumps([asdict(file), texts])}

    files: list[File] = []
    best: list[tuple[float, str]] = []
    with _context(), progress(len(paths), 0, show, "files checked") as bar:
        data = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=len(paths))
        data = data.map(check, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=min(len(paths), processors())))
        for row in data.iter_rows():
            found, texts = json.loads(row["found"])
            files.append(File(**found))
            best = heapq.nsmallest(sample, chain(best, map(tuple, texts)))
            bar.update(1)
    files.sort(key=lambda file: file.path)
    for one, next_one in zip(by := sorted(files, key=lambda file: file.digest), by[1:], strict=False):
        if one.digest == next_one.digest:
            raise DataError(f"{one.path} and {next_one.path} have the same content: leave one out.")
    without = [file.path for file in files if file.id_column is None]
    if without and len(without) < len(files):
        raise DataError(
            f"Some files have a column of ids, others have none ({listed(without)}). Name one that all have with "
            "id_column=... (--id-column ...), or encode them into two directories."
        )
    return files, [text for _, text in best]


def _scaled(precisions: Iterable[str]) -> bool:
    return bool({"int8", "uint8"} & set(precisions))


def _given_ranges(ranges: str | Path | np.ndarray | None, precisions: Sequence[str]) -> np.ndarray | None:
    if ranges is None:
        return None
    if not _scaled(precisions):
        raise LacosError("ranges are for precision='int8' or 'uint8': leave them out.")
    try:
        found = ranges if isinstance(ranges, np.ndarray) else np.load(ranges, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LacosError(f"ranges={str(ranges)!r} cannot be read as an .npy file: {error}") from error
    if found.ndim != 2 or len(found) != 2 or not (found[0] <= found[1]).all():
        raise LacosError(f"ranges must be (2, dimension), the lowest and the highest of each, not {found.shape}.")
    return np.asarray(found, np.float32)


def _ranges(
    given: np.ndarray | None, dimension: int, ask: Callable[..., Any], texts: list[str], zeros: bool
) -> np.ndarray:
    """The ranges that are given, or those of the sample; the zeros of a row without text are in them."""
    if given is None:
        low, high = ask("ranges_of", texts)
        return np.stack([np.minimum(low, 0), np.maximum(high, 0)]) if zeros else np.stack([low, high])
    if given.shape[1] != dimension:
        raise LacosError(f"The ranges are of {given.shape[1]} dimensions, the embeddings have {dimension}.")
    return given


def _digest(array: np.ndarray) -> str:
    """Digest of an array."""
    import hashlib

    return hashlib.blake2b(array.tobytes()).hexdigest()[:32]


# -- Ray


@contextmanager
def _context() -> Iterator[None]:
    """Ray Data's settings for data sets whose rows are pieces of work."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # each row is a block: given to whoever is free as soon as it is made
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    with DataContext.current(context):
        yield


@contextmanager
def _prober(job: Job, resources: dict[str, float]) -> Iterator[Callable[..., Any]]:
    """One actor beforehand, to ask about the model."""
    import ray

    actor = ray.remote(Actor).options(**resources).remote(replace(job))
    try:
        yield lambda name, *arguments: ray.get(actor.get.remote(name, *arguments))
    finally:
        ray.kill(actor)


def _encoded(
    files: list[File], there: set[str], job: Job, actors: int, resources: dict[str, float]
) -> Generator[dict[str, str]]:
    """Encode the parts that are not there; yield each when it is written."""
    import ray.data

    left = [
        {"file": json.dumps([asdict(file), [name for name in names if name in there]])}
        for file in files
        if not there.issuperset(names := [name for name, _ in file.parts(job.part_size)])
    ]
    if not left:
        return
    with _context():
        data = ray.data.from_items(left, override_num_blocks=len(left))
        data = data.map_batches(
            read,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(job.part_size, job.integer_ids),
            num_cpus=0,  # actors have all processors; a reader needs little of one
            compute=ray.data.TaskPoolStrategy(size=actors),
        )
        data = data.map_batches(
            Actor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=actors),
            **resources,
        )
        yield from data.iter_rows()
