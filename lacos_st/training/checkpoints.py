"""A run's directory, `<output>.run/`: whether a run can go on there, and from which checkpoint exactly.

recipe.yaml                 the recipe; another one must not go on from its checkpoints
data.json                   what the rows are; neither must others
mini_batch.json             texts to embed at a time, where memory decided that
before.json                 scores before the first step
checkpoints/                the Trainer's, each with `digests.json`
finished/, training.json    the model while it is moved to the output, and the record in it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from lacos_st.config import LacosConfig
from lacos_st.data.mixing import CHUNK
from lacos_st.errors import LacosError
from lacos_st.files import write_json

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SEAL = "digests.json"
# Settings that may change between a run and its continuation without changing what is learnt.
_FREE = {"output", "overwrite", "report_to"}


def is_finished(config: LacosConfig, output: Path, run: Path) -> bool:
    """Whether this very run has put its model in place already.

    Then nothing of it is left to be moved, and the record in the output, with its times and losses, is this run's.

    Args:
        config: The recipe.
        output: Where the model goes.
        run: The run's directory.
    """
    recipe, ours, placed = run / "recipe.yaml", run / "training.json", output / "training.json"
    return (
        not config.overwrite
        and recipe.is_file()
        and ours.is_file()
        and placed.is_file()
        and placed.read_bytes() == ours.read_bytes()
        and not any(path.is_file() for path in (run / "finished").rglob("*"))
        and not _changes(recipe, config)
    )


def _changes(recipe: Path, config: LacosConfig) -> list[str]:
    there, now = (
        {name: value for name, value in each.to_dict().items() if name not in _FREE}
        for each in (LacosConfig.from_yaml(recipe), config)
    )
    return _differences(there, now)


def _differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]


def prepare(config: LacosConfig, output: Path, run: Path) -> Path | None:
    """Make or check the run's directory.

    Args:
        config: The recipe.
        output: Where the model goes.
        run: The run's directory.

    Returns:
        The checkpoint to go on from, or None.

    Raises:
        LacosError: The output holds something, or the run another recipe, and `overwrite` is not set; or the output
            is no directory.
    """
    if output.exists() and not output.is_dir():
        raise LacosError(
            f"The output {config.output!r} is a file, and a model is a directory. Choose another output, or move the "
            "file away."
        )
    if not config.overwrite and output.is_dir() and any(output.iterdir()):
        raise LacosError(
            f"The output {config.output!r} exists already and is not empty. Choose another output, or set overwrite "
            "(--overwrite) to replace the model there."
        )
    recipe = run / "recipe.yaml"
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(run / "checkpoints")
    known = checkpoint is not None and recipe.is_file()
    changed = _changes(recipe, config) if known else []
    if changed and not config.overwrite:
        raise LacosError(
            f"An unfinished run with another recipe is in {str(run)!r} ({'; '.join(changed)}). Use its settings to "
            "go on with it, or set overwrite (--overwrite) to start afresh."
        )
    if known and not changed:
        return checkpoint
    _forget(run)
    config.to_yaml(recipe)
    return None


def described(data: tuple[DatasetDict, Dataset]) -> dict[str, str]:
    """Say what the rows of a run are.

    Args:
        data: Rows to train on, by source, and held-out rows.

    Returns:
        Source -> how many rows these are, and a hash of them, in their order.
    """
    return {name: _describe(part) for name, part in [*data[0].items(), ("held-out rows", data[1])]}


def go_on(config: LacosConfig, rows: dict[str, str], run: Path, checkpoint: Path | None) -> Path | None:
    """Go on from a checkpoint only with the rows that it was trained on, and keep what these are.

    Args:
        config: The recipe.
        rows: What they are (`described`).
        run: The run's directory.
        checkpoint: What `prepare` found.

    Returns:
        The checkpoint, or None.

    Raises:
        LacosError: The rows are others, and `overwrite` is not set.
    """
    record = run / "data.json"
    if checkpoint is not None and record.is_file():
        changed = _differences(json.loads(record.read_text(encoding="utf-8")), rows)
        if changed and not config.overwrite:
            raise LacosError(
                f"The data have changed since the unfinished run in {str(run)!r} began ({'; '.join(changed)}). Put "
                "them back to go on with it, or set overwrite (--overwrite) to start afresh."
            )
        if changed:
            _forget(run)
            checkpoint = None
    write_json(record, rows)
    return checkpoint


def _describe(data: Dataset) -> str:
    seen = hashlib.blake2b(digest_size=4)
    for rows in data.iter(CHUNK):
        seen.update(json.dumps(rows).encode())
    return f"{len(data)} rows ({seen.hexdigest()})"


def _forget(run: Path) -> None:
    """Take away what a run has learnt."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    for name in ("before.json", "training.json"):
        (run / name).unlink(missing_ok=True)


def latest_checkpoint(directory: Path) -> Path | None:
    """Find the newest checkpoint from which training can go on exactly.

    Complete means: adapter, optimiser, scheduler and random state are readable, the Trainer's own state, which
    is written last, is there, and what was sealed has not changed. Others are skipped with a warning.

    Args:
        directory: Where `checkpoint-<step>` directories lie.

    Returns:
        Its path, or None.
    """
    found = [path for path in directory.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        problem = _incomplete(path)
        if problem is None:
            return path
        warnings.warn(f"Skipping the incomplete checkpoint {str(path)!r}: {problem}.", stacklevel=2)
    return None


def seal(checkpoint: Path) -> None:
    """Keep digests of a checkpoint's files, so that one that a disk has damaged is not gone on from.

    Args:
        checkpoint: A complete one, to which all processes have written.
    """
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    write_json(checkpoint / _SEAL, {path.relative_to(checkpoint).as_posix(): _digest(path) for path in files})


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:32]


def _incomplete(path: Path) -> str | None:
    """What keeps a checkpoint from being resumed, or None."""
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(str(path / "adapter_model.safetensors"), framework="pt") as tensors:
            if not list(tensors.keys()):
                return "its adapter is empty"
        for weights in path.glob("*/model.safetensors"):  # of modules after the transformer
            with safe_open(str(weights), framework="pt"):
                pass
        for name in ("optimizer.pt", "scheduler.pt"):
            with zipfile.ZipFile(path / name) as archive:
                if archive.testzip() is not None:
                    return f"{name} is damaged"
        if not list(path.glob("rng_state*.pth")):
            return "its random state is missing"
        # one process that was killed between the Trainer's last file and the digests has written all that matters
        if (path / _SEAL).is_file() or (path / "rng_state_0.pth").is_file():
            for name, digest in json.loads((path / _SEAL).read_text(encoding="utf-8")).items():
                if _digest(path / name) != digest:
                    return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except Exception as error:  # safetensors raises a private type for a torn file
        return f"it cannot be read ({error})"
    return None
