"""How near a student is to its target: on sentences it was trained on, by source, and on unseen ones.

If the two differ, more text would help; if both are far off alike, the student is too small or too briefly trained.
Unseen are the sentences of STS-B's development split in English; every sentence of an STS set was kept out of training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from batches import Batches
from dev import encode, read
from space import Space
from targets import LEXICAL
from teach import load_teacher
from teach import read as taught
from transformers import AutoTokenizer

from lacos_st.bloom import LacosBloomModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of distil.py")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--count", type=int, default=1500, help="sentences of each source")
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    hidden = model.config.hidden_size
    batches = Batches(args.work_dir, hidden)
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["text", "source"])
    texts, sources = table["text"].combine_chunks(), np.array(table["source"].to_pylist())
    cosines = {}
    pool = np.random.default_rng(0).permutation(batches.pools["en"])
    for source in ("snli", "mnli", "tatoeba", "wordnet", "wikisplit"):
        rows = pool[sources[pool] == source][: args.count]
        if len(rows):
            said = encode(model, tokenizer, [texts[int(row)].as_py() for row in rows])
            cosines[source] = float((said * batches.targets(rows).numpy()).sum(1).mean())
    left, right, _ = read(args.data_dir / "sts/stsb.en.dev.jsonl.gz")
    unseen = sorted(set(left + right))[: args.count]
    said = torch.from_numpy(Space.load(args.work_dir, hidden).target(taught(*load_teacher(), unseen)[0]))
    ids = tokenizer(unseen)["input_ids"]
    sentence = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([*map(len, ids)]))
    codes = torch.from_numpy(batches.characters(unseen, np.full(len(unseen), "en")))
    english = torch.full((len(ids),), batches.known.index("en"))
    spelt = batches.spelt(codes, english, torch.tensor([token for row in ids for token in row]), sentence)
    target = batches.mixed(said, spelt, LEXICAL["en"]).numpy()
    cosines["unseen"] = float((encode(model, tokenizer, unseen) * target).sum(1).mean())
    print(json.dumps({name: round(value, 3) for name, value in cosines.items()}))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
