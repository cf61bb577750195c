"""A real decoder: encoding and a LoRA step, ours beside stock sentence-transformers, on the same sentences.

    python benchmarks/real.py DECODER --texts sts/*.test.jsonl.gz     a directory as transformers saves one

A line for each case as it ends: seconds (the median of --repeats), the peak of a process of its own above the one
before loading, and cosine to stock fp32. Peers that need another environment run there and are compared by the same
stock fp32 line: OpenVINO with --only openvino (ST's backend="openvino", 8-bit weights), llama.cpp with --only llama.cpp
--gguf FILE.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from texts import texts_of

ENCODE = ["stock fp32", "stock bf16", "stock int8", "ours int8"]
TRAIN = [f"{name}, step" for name in ENCODE]
PEERS = ["openvino", "llama.cpp"]
_PAIRS = 16


def without_chat(directory: str) -> str:
    """The same directory without a chat template, which sentence-transformers would put around each text."""
    if not (Path(directory) / "chat_template.jinja").is_file():
        return directory
    plain = Path(tempfile.mkdtemp())
    for file in Path(directory).resolve().iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).symlink_to(file)
    return str(plain)


def load(case: str, arguments: argparse.Namespace) -> tuple[Any, Callable[[list[str]], np.ndarray]]:
    """The model of a case, and how it encodes."""
    name = case.removesuffix(", step")
    if name == "llama.cpp":
        from llama_cpp import LLAMA_POOLING_TYPE_MEAN, Llama

        model = Llama(
            arguments.gguf, embedding=True, pooling_type=LLAMA_POOLING_TYPE_MEAN, n_ctx=8192, n_batch=8192,
            n_ubatch=8192, n_threads=arguments.threads, n_threads_batch=arguments.threads, verbose=False,
        )  # fmt: skip
        return model, lambda texts: np.array(model.embed(texts, normalize=True))
    if name == "ours int8":
        from lacos_st import LacosSentenceTransformer

        model = LacosSentenceTransformer(
            arguments.decoder, pooling="mean", device="cpu", transformer_options={"template": ""}
        )
    else:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        options: dict[str, Any] = {"dtype": torch.bfloat16 if name == "stock bf16" else torch.float32}
        if name == "stock int8":
            options["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        if name == "openvino":
            options = {"load_in_8bit": True}
        transformer = Transformer(
            without_chat(arguments.decoder), model_kwargs=options, backend="openvino" if name == "openvino" else "torch"
        )
        transformer.tokenizer.padding_side = "right"
        if transformer.tokenizer.pad_token is None:
            transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
        size = transformer.get_embedding_dimension()
        model = SentenceTransformer(modules=[transformer, Pooling(size, "mean")], device="cpu")
    return model, lambda texts: model.encode(texts, normalize_embeddings=True)


def trainer(case: str, model: Any, texts: list[str]) -> Callable[[], None]:
    """A LoRA step (rank 16, all linear layers) of `_PAIRS` pairs."""
    import torch
    from peft import LoraConfig
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    model[0].model.requires_grad_(False)
    model.add_adapter(config)
    model.train()
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    columns = [model.preprocess(texts[place : 2 * _PAIRS : 2]) for place in (0, 1)]
    sixteen = case == "stock bf16, step"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=sixteen):
            value = loss([dict(column) for column in columns], None)
        value.backward()
        optimizer.step()

    return step


def child(case: str, arguments: argparse.Namespace) -> None:
    """Run one case in this process, and print what came out as JSON."""
    texts = texts_of(arguments.texts, arguments.each)
    if case != "llama.cpp":
        import sentence_transformers  # noqa: F401  before the baseline
        import torch

        torch.set_num_threads(arguments.threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model, encode = load(case, arguments)
    embeddings = encode(texts[:64]).tolist()
    run = trainer(case, model, texts) if case.endswith("step") else lambda: encode(texts)
    run()
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # Linux counts in KiB
    print(json.dumps({"seconds": statistics.median(seconds), "peak GB": peak / 1e9, "embeddings": embeddings}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder")
    parser.add_argument("--texts", nargs="+", required=True, help="files of lines with a sentence1")
    parser.add_argument("--each", type=int, default=200, help="texts of each file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*ENCODE, *TRAIN, *PEERS], default=[*ENCODE, *TRAIN])
    parser.add_argument("--gguf", help="for llama.cpp")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments)
        return
    cases = arguments.only if "stock fp32" in arguments.only else ["stock fp32", *arguments.only]
    results: dict[str, dict[str, float]] = {}
    reference: np.ndarray | None = None
    for case in cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case:18} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        embeddings = np.array(found.pop("embeddings"))
        reference = embeddings if reference is None else reference
        same = embeddings.shape == reference.shape
        found["lowest cosine"] = float((embeddings * reference).sum(1).min()) if same else float("nan")
        first = results.get("stock fp32, step" if case.endswith("step") else "stock fp32", found)
        found["stock fp32 takes so many times as long"] = first["seconds"] / found["seconds"]
        results[case] = found
        print(
            f"{case:18} {found['seconds']:7.2f} s  x {found['stock fp32 takes so many times as long']:5.2f}  "
            f"peak {found['peak GB']:5.2f} GB  lowest cosine {found['lowest cosine']:.4f}",
            flush=True,
        )
    if arguments.output:
        told = {"decoder": Path(arguments.decoder).name, "threads": arguments.threads, "results": results}
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
