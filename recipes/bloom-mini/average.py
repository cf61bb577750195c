"""The mean of two students' weights, of one tokenizer and in one space: better than either (Wortsman et al., 2022).

Both must have grown from the same layers, or their mean says nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from student import save

from lacos_st.bloom import LacosBloomModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="output of distil.py deep")
    parser.add_argument("second", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if (args.first / "tokenizer.json").read_bytes() != (args.second / "tokenizer.json").read_bytes():
        parser.error(f"{args.first} and {args.second} have different tokenizers: their rows are of different tokens.")
    model = LacosBloomModel.from_pretrained(args.first)
    other = dict(LacosBloomModel.from_pretrained(args.second).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(other[name], 0.5)
    save(model, args.output, args.first)


if __name__ == "__main__":
    main()
