"""Train on a CSV of your own: `python examples/train_csv.py [PAIRS.csv]`.

The file has two columns of texts that mean the same. Without one, a small file of English sentences and their
translations is written from what comes with the package. The last tenth is held out; how often the right translation
is the nearest of all held-out ones is measured before and after.
"""

import csv
import gzip
import json
import sys
import tempfile
from pathlib import Path

from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

from lacos_st import LacosConfig, LacosSentenceTransformer, train
from lacos_st.embedded.names import sample_path


def sample(path: Path) -> None:
    with gzip.open(sample_path("across-train"), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("english", "translation"), *((r["anchor"], r["positive"]) for r in rows)])


def main(folder: Path, given: str | None) -> None:
    path = Path(given) if given else folder / "pairs.csv"
    if not given:
        sample(path)
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    kept, held_out = rows[: -len(rows) // 10], rows[-len(rows) // 10 :]
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *kept])

    left, right = zip(*held_out, strict=True)
    measure = TranslationEvaluator(left, right, write_csv=False)
    before = measure(LacosSentenceTransformer("bloom-mini"))["mean_accuracy"]

    trained = train(
        LacosConfig(
            base="bloom-mini",  # or "Qwen/Qwen3-0.6B", "bigscience/bloom-560m", ...
            train_data=[str(folder / "train.csv")],
            output=str(folder / "my-model"),
            max_steps=25,
            eval_steps=25,
            batch_size=64,
            learning_rate=1e-3,
        )
    )
    after = measure(trained)["mean_accuracy"]
    print(f"{len(kept)} rows, of which {trained.training_record['rows']} read; {trained.training_record['steps']} steps")
    print(f"Right translation found among {len(held_out)}: {before:.1%} before, {after:.1%} after")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), sys.argv[1] if len(sys.argv) > 1 else None)
