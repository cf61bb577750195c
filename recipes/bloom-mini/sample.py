"""The NLI sample that travels with the package: triplets under licences that allow commercial redistribution.

`nli-train` and `nli-dev`: a premise, what it entails, what it contradicts; mostly English (`sample_languages.py` has
the others).

InferBR (Portuguese, MIT) is left out: its triplets cost Portuguese five points (`docs/ablations.md`).

Reads `nli/triplets.*.jsonl.gz` below --data-dir; each row names its data set, and only those in LICENCES are kept.
Rows with a sentence of an STS set are dropped. Held-out triplets share no anchor with the training ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from pathlib import Path

from collect import jsonl, norm, sts_sentences

from lacos_st.embedded import ASSETS

COLUMNS = ("anchor", "positive", "negative")
LICENCES = {
    "snli": "CC BY-SA 4.0",
    "mnli": "OANC / CC BY 3.0 / CC BY-SA 3.0 / public domain, by genre",
    "cad-nli": "Apache-2.0 over SNLI's CC BY-SA 4.0",
    "conjnli": "MIT",
    "tenp-base": "CC BY-SA 3.0",
    "tenp-contrast": "CC BY-SA 3.0",
    "sanli-base-wiki": "CC BY-SA 3.0",
    "breaking-nli": "CC BY-SA 4.0",
    "indonli": "CC BY-SA 4.0",
    "klue-nli": "CC BY-SA 4.0",
    "farstail": "Apache-2.0",
}
HELD_OUT = ("snli.test", "mnli.dev-mismatched", "indonli.test-lay", "klue-nli.dev")


def shippable(row: dict[str, str], longest: int) -> bool:
    """Whether a triplet's licence lets it travel, and its sentences are short enough."""
    return row["dataset"].split(".")[0] in LICENCES and max(len(row[column]) for column in COLUMNS) <= longest


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ASSETS / "samples")
    parser.add_argument("--held-out", type=int, default=125, help="triplets of each data set in HELD_OUT")
    parser.add_argument("--longest", type=int, default=120, help="characters of the longest sentence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forbidden = sts_sentences(args.data_dir)
    rows: dict[str, dict[str, str]] = {}
    for path in sorted((args.data_dir / "nli").glob("triplets.*.jsonl.gz")):
        for row in jsonl(path):
            texts = [norm(row[column]) for column in COLUMNS]
            if shippable(row, args.longest) and not forbidden.intersection(texts):
                rows["\t".join(texts)] = row
    kept = list(rows.values())
    random.Random(args.seed).shuffle(kept)
    taken: Counter[str] = Counter()
    held: list[dict[str, str]] = []
    for row in kept:
        if row["dataset"] in HELD_OUT and taken[row["dataset"]] < args.held_out:
            taken[row["dataset"]] += 1
            held.append(row)
    anchors = {norm(row["anchor"]) for row in held}
    train = [row for row in kept if norm(row["anchor"]) not in anchors]
    for name, part in (("nli-train", train), ("nli-dev", held)):
        write(args.output / f"{name}.jsonl.gz", [{column: row[column] for column in COLUMNS} for row in part])
        print(name, len(part), Counter(row["dataset"].split(".")[0] for row in part).most_common())


if __name__ == "__main__":
    main()
