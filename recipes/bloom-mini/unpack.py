"""The shipped base as a checkpoint in full precision, so that training can go on from it."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lacos_st.embedded import unpack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        unpack("bloom-mini", base)
        weights = load_file(base / "model.safetensors")
        for name in [name for name, tensor in weights.items() if tensor.dtype == torch.int8]:
            layer = name.removesuffix("weight")
            weights[name] = weights[name] * (weights.pop(layer + "SCB") / 127)[:, None]  # a scale for each row, of 127
            del weights[layer + "weight_format"]
        save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        del config["quantization_config"]
        (args.output / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, args.output / name)


if __name__ == "__main__":
    main()
