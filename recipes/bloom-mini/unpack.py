"""The shipped base as a checkpoint in full precision, so that training can go on from it."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from student import save
from transformers import BloomConfig, BloomModel

from lacos_st.artifact import SKETCH
from lacos_st.embedded import unpack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        unpack("bloom-mini", base)
        weights = BloomModel.from_pretrained(base).dequantize(torch.float32).state_dict()
        config = BloomConfig.from_pretrained(base)
        del config.quantization_config
        model = BloomModel(config)  # transformers cannot save a model that it has dequantised
        model.load_state_dict(weights)
        save(model, args.output, base)
        for folder in (SKETCH, "1_Dense", "3_LayerNorm"):  # a bias that `typical.py` made is the base's
            shutil.copytree(base / folder, args.output / folder, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
