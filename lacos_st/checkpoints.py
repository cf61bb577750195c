"""A run's directory, `<output>.run/`: whether a run can go on there, and from which checkpoint exactly.

recipe.yaml                 the recipe; another one must not go on from its checkpoints
mini_batch.json             texts to embed at a time, where memory decided that
checkpoints/                the Trainer's
"""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path

from safetensors import safe_open

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError

# Settings that may change between a run and its continuation without changing what is learnt.
_FREE = {"output", "overwrite", "report_to", "logging_steps"}


def is_finished(config: LacosConfig, output: Path, run: Path) -> bool:
    """Whether this very run has put its model in place already; `training.json` is part of what is moved there.

    Args:
        config: The recipe.
        output: Where the model goes.
        run: The run's directory.
    """
    recipe = run / "recipe.yaml"
    return (
        not config.overwrite
        and (output / "training.json").is_file()
        and recipe.is_file()
        and not _differences(LacosConfig.from_yaml(recipe), config)
    )


def _differences(earlier: LacosConfig, config: LacosConfig) -> list[str]:
    return [
        f"{item.name}: {getattr(earlier, item.name)!r} there, {getattr(config, item.name)!r} now"
        for item in fields(config)
        if item.name not in _FREE and getattr(earlier, item.name) != getattr(config, item.name)
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
        LacosError: The output holds something, or the run another recipe, and `overwrite` is not set.
    """
    if not config.overwrite and (output.is_file() or (output.is_dir() and any(output.iterdir()))):
        raise LacosError(
            f"The output {str(output)!r} exists already and is not empty. Choose another output, or set overwrite "
            "(--overwrite) to replace the model there."
        )
    recipe = run / "recipe.yaml"
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(run / "checkpoints")
    known = checkpoint is not None and recipe.is_file()
    changed = _differences(LacosConfig.from_yaml(recipe), config) if known else []
    if changed and not config.overwrite:
        raise LacosError(
            f"An unfinished run with another recipe is in {str(run)!r} ({'; '.join(changed)}). Use its settings to "
            "go on with it, or set overwrite (--overwrite) to start afresh."
        )
    if known and not changed:
        return checkpoint
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    config.to_yaml(recipe)
    return None


def latest_checkpoint(directory: Path) -> Path | None:
    """Find the newest checkpoint from which training can go on exactly.

    Complete means: adapter, optimiser, scheduler and random state are readable, and the Trainer's own state, which
    is written last, is there. Incomplete ones are skipped with a warning.

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
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except Exception as error:  # safetensors raises a private type for a torn file
        return f"it cannot be read ({error})"
    return None
