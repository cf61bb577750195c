"""Hard negatives with sentence-transformers' `mine_hard_negatives`: texts that are near to an anchor and still wrong.

Pairs of an English sentence and its translation go in; for each the nearest other translations come out, as triplets
that `lacos-st train` and every loss take.
"""

import tempfile
from pathlib import Path

from datasets import load_dataset
from sentence_transformers.util import mine_hard_negatives

from lacos_st import LacosSentenceTransformer
from lacos_st.embedded.names import sample_path


def main(output: Path) -> None:
    model = LacosSentenceTransformer("lacos-bloom")
    pairs = load_dataset("json", data_files=str(sample_path("across-train")), split="train")
    pairs = pairs.select(range(1500)).select_columns(["anchor", "positive"])
    mined = mine_hard_negatives(
        pairs,
        model,
        range_max=20,  # look among the 20 nearest
        relative_margin=0.05,  # and leave out what is nearly as near as the right one: it may be right too
        num_negatives=1,
        sampling_strategy="top",
        verbose=False,
    )
    mined.to_json(str(output), force_ascii=False)
    print(f"{len(pairs)} pairs, {len(mined)} triplets with a hard negative")
    for row in mined.select(range(3)):
        print(f"\nanchor    {row['anchor']}\npositive  {row['positive']}\nnegative  {row['negative']}")
    print(f"\nTrain on them: lacos-st train --train-data {output.name}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder, "triplets.jsonl"))
