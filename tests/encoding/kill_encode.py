"""Kill `encode_file` at random moments and compare with an undisturbed run, byte for byte.

    python tests/encoding/kill_encode.py KILLS SEED DIRECTORY [MODEL]

One process imports everything once, and forks a child for each run; torch computes in one thread, because a forked
child has no others. Without MODEL a tiny `StaticEmbedding` model is used. Prints one JSON line: the kills that met a
running child, the rows that were done at each, and whether the outputs are equal.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from static import WORDS, static_model
from tqdm import tqdm

from lacos_st.encoding.encode import encode_file


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tqdm.set_lock(threading.RLock())  # the one before is shared with siblings, and one was killed holding it
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def main(kills: int, seed: int, directory: Path, model_name: str | None) -> None:
    torch.set_num_threads(1)
    draw = random.Random(seed)
    model = SentenceTransformer(model_name, device="cpu") if model_name else static_model()
    rows = 400 if model_name else 4000
    lines = [" ".join(draw.choices(WORDS, k=draw.randrange(12))) for _ in range(rows)]
    (directory / "input.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"chunk_size": 20 if model_name else 130, "batch_size": 8, "show_progress": False}
    report: dict = {"kills": 0, "done": [], "equal": []}
    for ending, precision in ((".npy", "float32"), (".parquet", "int8"), (".npy", "ubinary")):
        undisturbed = directory / f"undisturbed-{precision}{ending}"
        disturbed = directory / f"disturbed-{precision}{ending}"

        def run(output, precision=precision):
            encode_file(model, directory / "input.txt", output, precision=precision, **options)

        started = time.perf_counter()
        assert os.waitpid(in_child(lambda: run(undisturbed)), 0)[1] == 0  # noqa: B023 - called at once
        duration = time.perf_counter() - started
        for left in range(kills, 0, -1):
            if disturbed.exists():  # it came through: begin anew
                disturbed.unlink()
            child = in_child(lambda: run(disturbed))  # noqa: B023 - called at once
            time.sleep(draw.uniform(0, duration / (2 if left % 2 else 1)))
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            assert status == 0 or os.WIFSIGNALED(status), status
            report["kills"] += os.WIFSIGNALED(status)
            progress = disturbed.with_name(f"{disturbed.name}.progress.json")
            report["done"].append(json.loads(progress.read_text())["done"] if progress.exists() else None)
            if disturbed.exists():
                assert digest(disturbed) == digest(undisturbed), "a half-written output"
        assert os.waitpid(in_child(lambda: run(disturbed)), 0)[1] == 0  # noqa: B023 - called at once
        report["equal"].append(digest(disturbed) == digest(undisturbed))
        report["left"] = sorted(path.name for path in directory.iterdir() if path.name.startswith((".", "disturbed")))
    print(json.dumps(report))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
