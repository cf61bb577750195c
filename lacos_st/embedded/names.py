"""Names of what travels with the package: models, samples, and the settings that suit them (`recipe.yaml`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lacos_st.errors import LacosError

EMBEDDED = ("bloom-mini", "lacos-bloom")
"""Names of the embedded models: the base, and the base with its LACoS adapter."""

ASSETS = Path(__file__).parent / "assets"
_TRIPLETS = ("nli-train", "es-train", "fr-train", "pt-train", "it-train", "across-train", "nli-dev")
_SAMPLES = {**{name: f"samples/{name}.jsonl.gz" for name in _TRIPLETS}, "sts17": "sts"}


def sample_path(name: str) -> Path:
    """Path of an embedded data sample.

    Args:
        name: "nli-train" (triplets, mostly English), "es-train", "fr-train", "pt-train", "it-train" (English ones
            translated by rules), "across-train" (English and translations), "nli-dev" (held-out triplets) or "sts17"
            (a folder of STS17 test pairs).
            Sources and licences: `assets/NOTICE.md`.

    Returns:
        The file or folder.

    Raises:
        LacosError: There is no sample of that name.

    Example:
        >>> sample_path("nli-dev").name
        'nli-dev.jsonl.gz'
    """
    if name not in _SAMPLES:
        raise LacosError(f"There is no embedded sample {name!r}: choose from {', '.join(_SAMPLES)}.")
    return ASSETS / _SAMPLES[name]


@cache
def _recipe() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("recipe.yaml").read_text(encoding="utf-8"))
    return found


def samples(part: str) -> list[str]:
    """The samples that a recipe without data uses, from `recipe.yaml`.

    Args:
        part: "samples" to train on, or "held_out" to choose the best step by.

    Returns:
        Paths, each with its weight behind an `@` where it has one.
    """
    parts = (entry.partition("@") for entry in _recipe()[part])
    return [f"{sample_path(name)}{at}{weight}" for name, at, weight in parts]


def own_settings(base: str) -> dict[str, Any]:
    """Settings of `LacosConfig` that suit an embedded base, from `recipe.yaml`; empty for any other base.

    Args:
        base: As in a recipe. A local directory of that name comes first, and has none.
    """
    found: dict[str, Any] = {} if base not in EMBEDDED or Path(base).is_dir() else _recipe().get(base, {})
    return found
