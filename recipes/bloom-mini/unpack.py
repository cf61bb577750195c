"""The shipped base as a checkpoint in full precision, so that training can go on from it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BloomConfig

from lacos_st.bloom import LacosBloomModel
from lacos_st.embedded import ASSETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    source = ASSETS / "bloom-mini"
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"], config["dtype"]
    model = LacosBloomModel(BloomConfig(**config))
    packed = load_file(source / "model.safetensors")
    weights = {}
    for name in model.state_dict():
        weights[name] = packed[name].float()
        if packed[name].dtype == torch.int8:  # a scale for each row, of 127
            weights[name] *= packed[name.removesuffix("weight") + "SCB"].float()[:, None] / 127
    model.load_state_dict(weights)
    model.save_pretrained(args.output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, args.output / name)


if __name__ == "__main__":
    main()
