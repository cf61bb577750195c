"""Two training processes against one, each process with as many threads, over the same batches.

    python benchmarks/processes.py [--base bloom-mini] [--processes 2] [--threads 1] [--steps 30]
        [--train-data FILE --eval-data FILE] [--output FILE.json]

Both run `lacos-st train` under torchrun on this machine. What is compared is the Trainer's own seconds less those of
its evaluations: steps alone, without starting up. The held-out loss must agree: it is the same run. While one process
is measured, as many copies of it run as there are processes in the other case: a machine that is busy in part runs at
another speed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import machine, report


def trained(processes: int, copies: int, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with so many processes, in several copies at once, and return the mean of their seconds."""
    options = ["--base", arguments.base, "--max-steps", str(arguments.steps), "--lora-dropout", "0"]
    options += ["--batch-size", str(arguments.batch_size), "--eval-steps", str(arguments.steps)]
    options += ["--train-data", *arguments.train_data] if arguments.train_data else []
    options += ["--eval-data", *arguments.eval_data] if arguments.eval_data else []
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "GLOO_SOCKET_IFNAME": "lo"}
    outputs = [directory / f"{processes}-{copy}" for copy in range(copies)]
    running = [
        subprocess.Popen(
            [*launch, "-m", "lacos_st.cli", "train", *options, "--output", str(output)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for output in outputs
    ]
    if sum(process.wait() for process in running):
        raise SystemExit("A training failed.")
    records = [json.loads((output / "training.json").read_text(encoding="utf-8")) for output in outputs]
    logs = [record["log"] for record in records]
    seconds = mean(log[-1]["train_runtime"] - sum(entry.get("eval_runtime", 0) for entry in log) for log in logs)
    found = {"processes": processes, "seconds": round(seconds, 1), "held_out_loss": records[0]["best_metric"]}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bloom-mini")
    parser.add_argument("--train-data", nargs="+", help="default: the sample of the embedded base")
    parser.add_argument("--eval-data", nargs="+", help="default: a part of the above")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = [  # in turns: a shared machine's speed changes
            [
                trained(count, arguments.processes // count, Path(name, str(turn)), arguments)
                for count in (1, arguments.processes)
            ]
            for turn in range(arguments.rounds)
        ]
    one, several = ({**kind[0], "seconds": [run["seconds"] for run in kind]} for kind in zip(*found, strict=True))
    speedup = median(one["seconds"]) / median(several["seconds"])
    print(f"{arguments.processes} processes are {speedup:.2f} times as fast as one")
    report({"machine": machine(), "one": one, "several": several, "speedup": {"times": speedup}}, arguments.output)


if __name__ == "__main__":
    main()
