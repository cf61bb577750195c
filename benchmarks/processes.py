"""Two training processes against one, each process with as many threads, over the same batches.

    python benchmarks/processes.py [--base bloom-mini] [--processes 2] [--threads 1] [--steps 30] [--output FILE.json]

Both run `lacos-st train` under torchrun on this machine. What is compared is the seconds that `train` itself records,
from the first step to the last, so starting up is not in it. The held-out loss must agree: it is the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, report


def trained(processes: int, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with so many processes, and return the record."""
    output = directory / f"of-{processes}"
    options = ["--base", arguments.base, "--output", str(output), "--max-steps", str(arguments.steps)]
    options += ["--batch-size", str(arguments.batch_size), "--eval-steps", str(arguments.steps), "--lora-dropout", "0"]
    options += ["--train-data", *arguments.train_data] if arguments.train_data else []
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "lacos_st.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*command, "train", *options], check=True, env=environment, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    found = {"processes": processes, "seconds": record["seconds"], "held_out_loss": record["best_metric"]}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bloom-mini")
    parser.add_argument("--train-data", nargs="+", help="default: the sample of the embedded base")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        one, several = (trained(count, Path(name), arguments) for count in (1, arguments.processes))
    speedup = one["seconds"] / several["seconds"]
    print(f"{arguments.processes} processes are {speedup:.2f} times as fast as one")
    report({"machine": machine(), "one": one, "several": several, "speedup": {"times": speedup}}, arguments.output)


if __name__ == "__main__":
    main()
