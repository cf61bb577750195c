"""How well pairs are ordered by the sketch's share in their cosine: what `SHARE` in `lexical.py` was read off.

An embedding is meaning and sketch end to end, so a base that has any share tells what it would say with others:

    cosine = (1 - share) cosine of the meanings + share cosine of the sketches

All pairs outside test splits are read, and STS-B's weigh as much as makes their files' shares those of the test
(`paired.py`); nothing is trained on them. The first number is the model as it is, which tells the language of each text
by itself. English STS-B's training pairs are in part the test pairs of STS12 to 15: English's share is older than this.

    python shares.py lacos-bloom --data-dir FOLDER
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
from dev import Pairs, load, read
from lexical import MEANING
from paired import both, weight_of
from space import unit

from lacos_st.statistics import spearman

SHARES = (0.0, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
TESTED = {"klue-sts.ko.dev", "sts12.en.train"}  # MTEB's test split, and English that STS-B has
MOST = 10_000  # pairs of a set


def sets_of(sts: Path) -> dict[str, Pairs]:
    """Pairs by set and language, STS-B's in the order of `weight_of`."""
    parts = defaultdict(list)
    for path in sorted(sts.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        data, lang, split = name.split(".")
        if split != "test" and name not in TESTED and "-" not in lang:  # one language
            parts[f"{data}.{lang}"].append(path)
    found = {}
    for name, paths in parts.items():
        if name.startswith("stsb."):
            found[name] = both(sts, name.split(".")[1])
        else:
            left, right, gold = ([*chain(*column)][:MOST] for column in zip(*map(read, paths), strict=True))
            found[name] = left, right, gold
    return found


def by_share(left: np.ndarray, right: np.ndarray, gold: np.ndarray, weight: np.ndarray | None) -> list[float]:
    """Spearman x 100 as it is, then at each of `SHARES`.

    Args:
        left: (pairs, meaning and sketch) unit length.
        right: The same of the other sentences.
        gold: (pairs,)
        weight: (pairs,) how much each counts.
    """
    meaning, sketch = (
        (unit(left[:, part]) * unit(right[:, part])).sum(1) for part in (slice(MEANING), slice(MEANING, None))
    )
    found = [(left * right).sum(1), *((1 - share) * meaning + share * sketch for share in SHARES)]
    return [spearman(gold, cosines, weight) for cosines in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="one with a sketch, or an embedded name")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    args = parser.parse_args()
    encode, sts = load(args.model), args.data_dir / "sts"
    weight = weight_of(sts)
    print("set", "pairs", "now", *SHARES)
    for name, (left, right, gold) in sets_of(sts).items():
        vectors = [encode(side) for side in (left, right)]
        scores = by_share(*vectors, np.array(gold), weight if name.startswith("stsb.") else None)
        print(name, len(gold), *(f"{score:.2f}" for score in scores), flush=True)


if __name__ == "__main__":
    main()
