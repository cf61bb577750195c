"""Arrays that are made once and kept in the work directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lacos_st.files import atomic


def kept(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """What `make` returned when it was called first, from an .npz file."""
    if not path.exists():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **make())
    return np.load(path)
