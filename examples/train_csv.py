"""Train on a CSV of your own: `python examples/train_csv.py [PAIRS.csv]`.

The file has two columns of texts that mean the same; `messages.csv` has messages to a help desk in four languages, and
what each is about. Every fourth row is held out: how often is the right meaning the nearest, before and after?
Several messages share a meaning, so that a batch holds it more than once; the loss masks such false negatives.
"""

import csv
import sys
import tempfile
from pathlib import Path

from lacos_st import LacosConfig, LacosSentenceTransformer, train


def found(model: LacosSentenceTransformer, rows: list[list[str]], meanings: list[str]) -> list[str]:
    scores = model.similarity(model.encode([row[0] for row in rows]), model.encode(meanings))
    return [meanings[i] for i in scores.argmax(dim=1)]


def main(path: Path, folder: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    held_out, kept = rows[3::4], [row for i, row in enumerate(rows) if i % 4 != 3]
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *kept])

    meanings = sorted({row[1] for row in rows})
    before = found(LacosSentenceTransformer("bloom-mini"), held_out, meanings)
    model = train(
        LacosConfig(
            base="bloom-mini",  # or "Qwen/Qwen3-0.6B", "bigscience/bloom-560m", ...
            train_data=[str(folder / "train.csv")],
            output=str(folder / "my-model"),
            max_steps=30,
            batch_size=20,
            learning_rate=2e-3,
            eval_steps=30,
        )
    )
    after = found(model, held_out, meanings)

    for (message, meaning), old, new in zip(held_out, before, after, strict=True):
        if old != meaning == new:
            print(f"mended: {message}\n    before  {old}\n    after   {new}")
    right = [sum(row[1] == one for row, one in zip(held_out, guess, strict=True)) for guess in (before, after)]
    print(f"\nRight meaning for {len(held_out)} unseen messages: {right[0]} before, {right[1]} after")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("messages.csv"), Path(place))
