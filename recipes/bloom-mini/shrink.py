"""Let attention add less to each token's state: a fraction of what it was trained to add.

`distil.py deep --keep FRACTION` trains layers whose attention is not always there, and 1 / FRACTION as loud when it is.
Layers trained without that begin so at what they were.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from student import save

from lacos_st.bloom import LacosBloomModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of distil.py deep")
    parser.add_argument("output", type=Path)
    parser.add_argument("--fraction", type=float, default=0.65)
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model)
    with torch.no_grad():
        for block in model.h:
            dense = block.self_attention.dense  # its last two rows say how loud a token is
            dense.weight[:-2] *= args.fraction
            dense.bias[:-2] *= args.fraction
    save(model, args.output, args.model)


if __name__ == "__main__":
    main()
