"""Encoding and training on a machine that is busy with other things: the embedded model beside all-MiniLM-L6-v2.

A process a core computes without a pause; it is stopped for the idle cases and goes on for the busy ones. All cases
take turns, and medians are reported: with PyTorch's default threads, and with one thread. What counts is what is left
of a model's own idle speed: small models meet their threads often, and each meeting waits for whoever has no turn.

python benchmarks/busy.py --output docs/benchmarks/CPU/busy.json
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import machine, report
from embedded import peer, samples
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from lacos_st import LacosSentenceTransformer

OURS, PEER = "lacos-bloom", "all-MiniLM-L6-v2"


@contextmanager
def competitors(count: int) -> Iterator[Callable[[int], None]]:
    """Processes that compute; yields a function that sends all of them a signal."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10_000))"
    processes = [subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield lambda number: [process.send_signal(number) for process in processes] and None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def training_step(model: Any, pairs: list[tuple[str, str]]) -> Callable[[], None]:
    """A forward and a backward pass of the loss over pairs, with the adapter's gradients (the peer: with all)."""
    loss = MultipleNegativesRankingLoss(model)

    def step() -> None:
        model.train()
        columns = [model.preprocess(list(column)) for column in zip(*pairs, strict=True)]
        loss(columns, None).backward()
        model.zero_grad()
        model.eval()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of all cases; medians are reported")
    parser.add_argument("--train", action="store_true", help="training steps of 32 pairs too")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    rows = [row for part in samples().values() for row in part]
    sentences = [text for row in rows for text in row[:2]][: arguments.sentences]
    models: dict[str, Any] = {
        OURS: LacosSentenceTransformer("lacos-bloom", device="cpu", is_trainable=arguments.train),
        PEER: SentenceTransformer(peer(), device="cpu"),
    }
    work: dict[str, Callable[[], Any]] = {
        f"encode, {name}": lambda m=model: m.encode(sentences, batch_size=arguments.batch_size)
        for name, model in models.items()
    }
    count = {"encode": len(sentences), "train": 32}
    if arguments.train:
        pairs = [(row[0], row[1]) for row in rows[:32]]
        work |= {f"train, {name}": training_step(model, pairs) for name, model in models.items()}
    default = torch.get_num_threads()
    seconds: dict[tuple[str, int, str], list[float]] = {}
    with competitors(os.cpu_count() or 1) as send:
        for round_ in range(arguments.repeats + 1):  # the first to warm up
            for state, number in (("idle", signal.SIGSTOP), ("busy", signal.SIGCONT)):
                send(number)
                time.sleep(0.1)
                for threads in dict.fromkeys((default, 1)):
                    torch.set_num_threads(threads)
                    for name, run in work.items():
                        start = time.perf_counter()
                        run()
                        if round_:
                            seconds.setdefault((name, threads, state), []).append(time.perf_counter() - start)
    speed = {key: count[key[0].split(",")[0]] / statistics.median(times) for key, times in seconds.items()}
    results: dict[str, Any] = {
        "machine": machine() | {"load": os.getloadavg()[0]},
        "sentences a second": {f"{n}, {threads} threads, {state}": s for (n, threads, state), s in speed.items()},
        "busy / idle": {
            f"{name}, {threads} threads": speed[name, threads, "busy"] / speed[name, threads, "idle"]
            for name, threads, state in speed
            if state == "idle"
        },
    }
    report(results, arguments.output)


if __name__ == "__main__":
    main()
