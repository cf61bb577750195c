"""Last stage: put a trained base into the package's assets, packed in 8 bits."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from student import grow
from transformers import AutoTokenizer

from lacos_st.bloom import LacosBloomModel
from lacos_st.embedded import ASSETS, pack

KEEP = {"bos_token", "eos_token", "unk_token", "pad_token", "padding_side", "truncation_side", "model_max_length"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="output of distil.py")
    parser.add_argument("--output", type=Path, default=ASSETS / "bloom-mini")
    parser.add_argument("--layers", type=int, help="add untrained layers to a model without any")
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model)
    if args.layers:
        model = grow(model, args.layers)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        tokenizer.backend_tokenizer.no_truncation()  # a length that was used last is saved otherwise
        tokenizer.init_kwargs = {k: v for k, v in tokenizer.init_kwargs.items() if k in KEEP}
        tokenizer.save_pretrained(folder)
        pack(folder, args.output)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{args.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
