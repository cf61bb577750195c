"""Triplets whose sentences are in different languages, from NLI files that are row-aligned across languages.

    python across.py DATA/nli OUTPUT.jsonl.gz

XNLI has the same rows in every language: `xnli.<language>.<dev|test>.jsonl.gz` with `premise`, `hypothesis`, `label`.
Rows of one premise make a triplet: the premise in one language, what follows from it and what contradicts it in
another. Whoever trains on them must not report XNLI.
"""

import argparse
import gzip
import json
import random
from collections import defaultdict
from pathlib import Path

LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
_EACH = 3  # triplets of a premise, each in other languages


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def triplets(folder: Path, split: str, generator: random.Random) -> list[dict[str, str]]:
    aligned = {language: rows_of(folder / f"xnli.{language}.{split}.jsonl.gz") for language in LANGUAGES}
    lengths = {language: len(rows) for language, rows in aligned.items()}
    if len(set(lengths.values())) != 1:
        raise SystemExit(f"The files of split {split} are not row-aligned: {lengths}")
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, row in enumerate(aligned["en"]):
        places[row["premise"]][row["label"]].append(place)
    found = []
    for labels in places.values():
        if not (labels["entailment"] and labels["contradiction"]):
            continue
        for _ in range(_EACH):
            first, second = generator.sample(LANGUAGES, 2)
            if generator.random() < 0.5 and "en" not in (first, second):
                first = "en"
            yes, no = generator.choice(labels["entailment"]), generator.choice(labels["contradiction"])
            here, there = aligned[first], aligned[second]
            texts = (here[yes]["premise"], there[yes]["hypothesis"], there[no]["hypothesis"])
            found.append(dict(zip(("anchor", "positive", "negative"), texts, strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    generator = random.Random(0)
    found = [row for split in ("dev", "test") for row in triplets(arguments.folder, split, generator)]
    generator.shuffle(found)
    with gzip.open(arguments.output, "wt", encoding="utf-8") as output:
        output.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    print(f"Wrote {len(found):,} triplets across {len(LANGUAGES)} languages to {arguments.output}")


if __name__ == "__main__":
    main()
