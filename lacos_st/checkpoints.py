"""Which of the Trainer's checkpoints a run can go on from exactly."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

from safetensors import safe_open


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
