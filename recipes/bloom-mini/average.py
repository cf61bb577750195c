"""The mean of two students' weights, of one tokenizer and in one space: better than either (Wortsman et al., 2022).

Both must have grown from the same layers, or their mean says nothing. Where the second has learnt from text that served
some languages and not others, --keep leaves the token vectors of the others as the first has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from corpus import Counts
from student import save

from lacos_st.bloom import LacosBloomModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="output of distil.py deep")
    parser.add_argument("second", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--keep", nargs="*", default=[], metavar="LANG", help="tokens most frequent there: the first's")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    if args.keep:
        counts = Counts.load(args.work_dir)
        if unknown := sorted(set(args.keep) - set(counts.langs)):
            parser.error(f"{args.work_dir} has no text in {', '.join(unknown)}.")
    if (args.first / "tokenizer.json").read_bytes() != (args.second / "tokenizer.json").read_bytes():
        parser.error(f"{args.first} and {args.second} have different tokenizers: their rows are of different tokens.")
    model = LacosBloomModel.from_pretrained(args.first)
    other = dict(LacosBloomModel.from_pretrained(args.second).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "word_embeddings.weight" and args.keep:
                often = counts.frequencies()
                kept = np.isin(np.array(counts.langs)[often.argmax(0)], args.keep) & (often.max(0) > 0)
                other[name][torch.from_numpy(kept)] = parameter[torch.from_numpy(kept)]
            parameter.lerp_(other[name], 0.5)
    save(model, args.output, args.first)


if __name__ == "__main__":
    main()
