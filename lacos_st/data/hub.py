"""Hub data sets, and directories that `datasets` can load -> a `Table` of rows, as of a file.

`datasets` downloads, caches and memory-maps; this file chooses the subset and the split where the name leaves
them open, turns what can go wrong into one line, and streams the rows. Labels that the data set itself names
(`ClassLabel`) come out as those names if they are NLI's, so that a data set with another order of labels is
read correctly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lacos_st.data.columns import NLI_WORDS
from lacos_st.data.readers import DataError, Row, Table
from lacos_st.errors import LacosError, shortened

_BATCH = 1024  # rows that are turned into Python objects at a time


def open_hub(source: str) -> Table:
    """Make a `Table` of a Hub data set, or of a directory that `datasets` can load.

    Args:
        source: `owner/name[:subset[:split]]`, or the path of a directory. Subset: that given, the only one, or the
            first of default, triplet, pair, pair-class. Split: that given, else train, else the only one.

    Raises:
        DataError: It cannot be loaded (offline, unknown, private), or the choice of subset or split is not
            clear.
    """
    import datasets

    name, _, rest = source.partition(":")
    subset, _, split = rest.partition(":")
    offline = " Is there a network connection, and is HF_HUB_OFFLINE unset? Otherwise give local files."
    try:
        if Path(name, "state.json").exists() or Path(name, "dataset_dict.json").exists():
            data = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name, subset or _subset(name))
    except LacosError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = (
            offline if isinstance(error, ConnectionError) else " A Hub data set is named owner/name[:subset[:split]]."
        )
        here = "" if Path(name).exists() else f" There is no file or directory {name!r} here."
        raise DataError(f"The data set {source!r} cannot be loaded: {shortened(reason)}.{here}{hint}") from error
    if isinstance(data, dict):
        wanted = split or ("train" if "train" in data or len(data) > 1 else next(iter(data)))
        if wanted not in data:
            raise DataError(
                f"The data set {source!r} has no split {wanted!r}, but {shortened(', '.join(data))}. Choose one: "
                f"{name}:{subset}:SPLIT."
            )
        data = data[wanted]
    return open_dataset(data, source)


def _subset(name: str) -> str | None:
    import datasets

    known = datasets.get_dataset_config_names(name)
    if len(known) <= 1:
        return known[0] if known else None
    for preferred in ("default", "triplet", "pair", "pair-class"):
        if preferred in known:
            return preferred
    raise DataError(
        f"The data set {name!r} has several subsets; choose one: {name}:SUBSET with {shortened(', '.join(known))}."
    )


def open_dataset(data: Any, name: str = "dataset") -> Table:
    """Make a `Table` of a `datasets.Dataset`; NLI labels that have names come out as names."""
    named = {key: names for key, feature in data.features.items() if (names := getattr(feature, "names", None))}
    nli = {key for key, names in named.items() if {name.strip().lower() for name in names} <= NLI_WORDS}

    def rows(columns: Sequence[str] | None) -> Iterator[Row]:
        part = data if columns is None else data.select_columns(list(columns))
        number = 0
        for batch in part.iter(batch_size=_BATCH):
            for key in nli & set(batch):
                batch[key] = [named[key][i] if i is not None and i >= 0 else None for i in batch[key]]
            for fields in zip(*batch.values(), strict=True):
                number += 1
                yield Row(number, dict(zip(batch, fields, strict=True)))

    return Table(name, "dataset", rows, {key: names for key, names in named.items() if key not in nli})
