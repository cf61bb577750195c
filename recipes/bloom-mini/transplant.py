"""Give layers that were trained already other token vectors, and other tokens, half and half with their own.

`distil.py static` learns token vectors from ten times the sentences that layers can be shown in the same time, and
`space.py --towards` has turned its space to that of the layers. So a token becomes the mean of both models' vectors;
where the layers' tokenizer has no such token, its own pieces stand for it. English tokens that it has are kept.
`distil.py deep --start` goes on from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from corpus import Counts
from student import grow, save
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lacos_st.bloom import LacosBloomModel


def standard(rows: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1, as the layer norm above the table makes them."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.std(1, keepdim=True)


def old_pieces(old: Tokenizer, new: Tokenizer) -> Iterator[list[int]]:
    """For each of the new tokens the old ones that spell it."""
    vocabulary = old.get_vocab()
    for token, _ in sorted(new.get_vocab().items(), key=lambda item: item[1]):
        whole = vocabulary.get(token)
        yield [whole] if whole is not None else [piece.id for piece in old.model.tokenize(token)]


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
    pieces = [AutoTokenizer.from_pretrained(path).backend_tokenizer for path in (args.layers, args.static)]
    cut = [torch.tensor(ids) for ids in old_pieces(*pieces)]
    table = standard(model.word_embeddings.weight.data)
    mine = standard(torch.stack([table[ids].mean(0) for ids in cut]))
    theirs = standard(static.word_embeddings.weight.data)
    counts = Counts.load(args.work_dir)
    english = counts.of(["en"]).frequencies()[0]
    others = counts.of(lang for lang in counts.langs if lang != "en")
    others = np.where(others.tokens >= 10, others.frequencies(), 0).max(0)  # fewer may be an accident
    kept = torch.from_numpy(english >= args.english * (english + others))
    kept &= torch.tensor([len(ids) == 1 for ids in cut])
    kept[:4] = True  # <unk>, <s>, </s>, <pad>
    model.resize_token_embeddings(len(theirs), mean_resizing=False)
    model.word_embeddings.weight.data.copy_(torch.where(kept[:, None], mine, standard(mine + theirs)))
    save(model, args.output, args.static)
    print(f"{int(kept.sum()):,} of {len(theirs):,} token vectors kept")


if __name__ == "__main__":
    main()
