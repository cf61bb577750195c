"""A directory of embeddings in parts: each is whole, there once, and all are of one plan.

    DIR/3fa9c1d2e4b5a697-000000.parquet    rows 0 to 16,383 of the file with that digest
    DIR/3fa9c1d2e4b5a697-000001.parquet    the next
    DIR/_lacos.json                        the plan: which inputs, which model, which options; and whether all is done
    DIR/_ranges.npy                        what int8 was scaled by
    DIR/_staged/                           parts that are being written; gone at the end

Readers of Parquet directories pass over names that begin with `_`.

A part is named after its input's content and its place in it, so whoever computes it, and however often, means the same
file. Many processes write, each under a name of its own in `_staged`; one delivers: the process that holds the
directory's lock renames what is whole. A process of a dead run that still computes finds its folder gone, and cannot
touch what is delivered. There is no list of what is done: a part is done when it is there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lacos_st.encoding.store import disk_errors
from lacos_st.errors import LacosError, listed, shown
from lacos_st.files import atomic, write_json

logger = logging.getLogger(__name__)
_PART = re.compile(r"[0-9a-f]{16}-\d{6,}\.parquet")
_OURS = {"_lacos.json", "_ranges.npy", "_staged"}


def part_name(digest: str, number: int) -> str:
    """Name a part.

    Example:
        >>> part_name("3fa9c1d2e4b5a697", 3)
        '3fa9c1d2e4b5a697-000003.parquet'
    """
    return f"{digest}-{number:06d}.parquet"


class Parts:
    """The directory `output`, while its lock is held.

    Args:
        output: It need not exist.

    Raises:
        LacosError: It holds what is not ours, or cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.staged = output / "_staged" / uuid.uuid4().hex[:8]
        self.file = output / "_lacos.json"
        if output.is_file():
            raise LacosError(f"{output} is a file: the engine 'ray' writes a directory. Give another name.")
        with disk_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            foreign = [p.name for p in output.iterdir() if p.name not in _OURS and not _PART.fullmatch(p.name)]
        if foreign:
            raise LacosError(
                f"{output} holds what `encode` has not written ({listed(sorted(foreign))}): give a new directory."
            )

    def begin(self, plan: dict[str, Any], rows: Mapping[str, int], resume: bool) -> set[str]:
        """Set the directory up for a plan.

        Args:
            plan: All that decides what the parts hold.
            rows: The rows of each part.
            resume: Keep what an earlier run of the same plan delivered; False deletes it.

        Returns:
            The parts that are there.

        Raises:
            LacosError: What is there is of another plan.
        """
        with disk_errors(self.output):
            shutil.rmtree(self.output / "_staged", ignore_errors=True)
            there = {p.name for p in self.output.iterdir() if _PART.fullmatch(p.name)}
            if not resume:
                for name in there | {"_ranges.npy", "_lacos.json"}:
                    (self.output / name).unlink(missing_ok=True)
                there = set()
            self._check(plan, there)
            for name in sorted(there):
                if _rows(self.output / name) != rows.get(name):
                    logger.warning("%s is damaged; it is encoded anew.", self.output / name)
                    (self.output / name).unlink()
                    there.remove(name)
            if not there:
                (self.output / "_ranges.npy").unlink(missing_ok=True)
            write_json(self.file, {"plan": plan, "complete": False})
            self.staged.mkdir(parents=True)
        return there

    def _check(self, plan: dict[str, Any], there: set[str]) -> None:
        if not there:
            return
        over = "Give another directory, or start over with resume=False (--no-resume), which deletes what is in it."
        try:
            old = dict(json.loads(self.file.read_text(encoding="utf-8"))["plan"])
        except (OSError, ValueError, TypeError, KeyError):
            raise LacosError(
                f"{self.file}, which says what the parts beside it hold, is missing or damaged. {over}"
            ) from None
        before, now = dict(old.get("inputs") or {}), plan["inputs"]
        if set(before) != set(now):
            raise LacosError(f"{self.output} was begun with other input ({_changes(before, now)}). {over}")
        differing = [key for key in plan if key != "inputs" and old.get(key) != plan[key]]
        if differing:
            changes = "; ".join(f"{key}: {shown(old.get(key))}, now {shown(plan[key])}" for key in differing)
            raise LacosError(
                f"{self.output} was begun with other settings ({changes}), so going on would mix two results. {over}"
            )

    def keep_ranges(self, ranges: np.ndarray) -> None:
        """Write the ranges of int8 before the first part that is scaled by them."""
        with disk_errors(self.output), atomic(self.output / "_ranges.npy") as temporary, temporary.open("wb") as file:
            np.save(file, ranges)

    def kept_ranges(self) -> np.ndarray | None:
        """The ranges that the parts which are there are scaled by."""
        path = self.output / "_ranges.npy"
        return np.load(path, allow_pickle=False) if path.exists() else None

    def deliver(self, staged: str, name: str) -> None:
        """Put a part in its place."""
        with disk_errors(self.output):
            (self.staged / staged).rename(self.output / name)

    def finish(self, plan: dict[str, Any], rows: Mapping[str, int]) -> None:
        """Say that all is there.

        Raises:
            LacosError: Parts have gone missing meanwhile.
        """
        with disk_errors(self.output):
            there = {p.name for p in self.output.iterdir() if _PART.fullmatch(p.name)}
            if there != set(rows):
                raise LacosError(
                    f"{self.output} should hold {len(rows):,} parts and holds {len(there):,}: another process has "
                    f"changed it ({listed(sorted(there ^ set(rows)))}). Run the same command again."
                )
            shutil.rmtree(self.output / "_staged")
            write_json(self.file, {"plan": plan, "complete": True})


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file by its footer; None where there is no whole file."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError):
        return None


def _changes(before: dict[str, str], now: dict[str, str]) -> str:
    gone = {name for digest, name in before.items() if digest not in now}
    come = {name for digest, name in now.items() if digest not in before}
    found = {"changed": come & gone, "gone": gone - come, "new": come - gone}
    return "; ".join(f"{what}: {listed(sorted(names))}" for what, names in found.items() if names)
