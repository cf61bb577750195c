"""Give layers that were trained already better token vectors, half and half with their own.

`distil.py static` learns token vectors from ten times the sentences that layers can be shown in the same time, and
`space.py --towards` has turned its space to that of the layers. So tokens that mostly serve languages which the second
teacher reads, English excepted, become the mean of both models' vectors; `distil.py deep --start` goes on from there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from collect import READ
from corpus import tokenize
from student import grow

from lacos_st.bloom import LacosBloomModel


def frequencies(work_dir: Path, vocabulary: int) -> dict[str, np.ndarray]:
    """Of each language with 10,000 sentences, how often it uses each token; lists of words left out."""
    ids, offsets = tokenize(work_dir)
    table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "source"])
    langs, sources = (pc.cast(table[name], pa.string()).to_numpy() for name in ("lang", "source"))
    written = ~np.isin(sources, ["wordfreq", "freedict"])
    found = {}
    for lang in np.unique(langs):
        rows = np.flatnonzero((langs == lang) & written)[:150_000]
        if len(rows) >= 10_000:
            pieces = np.concatenate([ids[offsets[row] : offsets[row + 1]] for row in rows])
            found[str(lang)] = np.bincount(pieces, minlength=vocabulary) / len(pieces)
    return found


def standard(rows: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1, as the layer norm above the table makes them."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.std(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", type=Path, help="output of distil.py deep")
    parser.add_argument("static", type=Path, help="output of distil.py static")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--english", type=float, default=0.3, help="a token is English from this share of its use on")
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.layers)
    static = grow(LacosBloomModel.from_pretrained(args.static), model.config.n_layer)
    table = model.word_embeddings.weight.data
    found = frequencies(args.work_dir, len(table))
    english, others = found.pop("en"), np.stack(list(found.values()))
    known = np.array([lang in READ for lang in found])[others.argmax(0)]
    chosen = known & (english < args.english * (english + others.max(0)))
    chosen[:4] = False  # <unk>, <s>, </s>, <pad>
    chosen = torch.from_numpy(chosen)
    mine, theirs = standard(table), standard(static.word_embeddings.weight.data)
    table.copy_(torch.where(chosen[:, None], standard(mine + theirs), mine))
    model.save_pretrained(args.output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.layers / name, args.output / name)
    print(f"{int(chosen.sum()):,} of {len(table):,} token vectors replaced")


if __name__ == "__main__":
    main()
