"""How close the forms of 8 bits come to full precision, and stock to plugin, on real texts.

    python benchmarks/fidelity.py DECODER --texts sts/*.test.jsonl.gz     a directory as transformers saves one
    python benchmarks/fidelity.py lacos-bloom --texts ...                 a model of this package

Of a decoder the reference is stock fp32, with the mean of its states; beside it LLM.int8 and, by `accelerate`, fp32,
w8a16 and w8a8. Of a saved model the reference is stock sentence-transformers. A line for each case: the lowest and the
mean cosine to the reference, and seconds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import report
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from texts import texts_of

from lacos_st import LacosSentenceTransformer, accelerate
from lacos_st.model.names import resolve

EIGHT = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


def decoder(directory: str, eight: bool) -> SentenceTransformer:
    transformer = Transformer(directory, model_kwargs={"dtype": torch.float32, **(EIGHT if eight else {})})
    transformer.tokenizer.padding_side = "right"
    size = transformer.get_embedding_dimension()
    return SentenceTransformer(modules=[transformer, Pooling(size, "mean")], device="cpu")


def cases(name: str) -> dict[str, Callable[[], SentenceTransformer]]:
    directory = resolve(name)
    if (Path(directory) / "modules.json").is_file():
        return {
            "stock": lambda: SentenceTransformer(directory, device="cpu"),
            "plugin": lambda: LacosSentenceTransformer(directory, device="cpu"),
        }
    return {
        "stock fp32": lambda: decoder(directory, eight=False),
        "stock LLM.int8": lambda: decoder(directory, eight=True),
        "accelerate, fp32": lambda: accelerate(decoder(directory, eight=False)),
        "accelerate, w8a16": lambda: accelerate(decoder(directory, eight=True), "w8a16", "w8a16"),
        "accelerate, w8a8": lambda: accelerate(decoder(directory, eight=True), "w8a8", "w8a8"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="files of lines with a sentence1")
    parser.add_argument("--each", type=int, default=100, help="texts of each file")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    texts = texts_of(arguments.texts, arguments.each)
    reference: np.ndarray | None = None
    results: dict[str, dict[str, float]] = {}
    for name, make in cases(arguments.model).items():
        model = make()
        model.encode(texts[:8])
        started = time.perf_counter()
        found = model.encode(texts)
        seconds = time.perf_counter() - started
        reference = found if reference is None else reference
        cosines = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
        results[name] = {"lowest cosine": float(cosines.min()), "mean": float(cosines.mean()), "seconds": seconds}
        print(f"{name:20} {found.shape[1]:5} numbers  lowest {cosines.min():.4f}  mean {cosines.mean():.4f}  "
              f"{seconds:7.2f} s", flush=True)  # fmt: skip
    report({"model": Path(arguments.model).name, "texts": len(texts)} | results, arguments.output)


if __name__ == "__main__":
    main()
