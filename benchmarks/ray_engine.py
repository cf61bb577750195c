"""Encoding by Ray: rows a second, bytes a row, peak memory against the number of rows, and kills in the middle.

    python benchmarks/ray_engine.py --directory /tmp/ray --rows 10000 100000 200000 --kills 5 --output ray.json

The last number of rows is encoded twice: undisturbed, and while actors and the whole command are killed (SIGKILL), in
turn, at seeded points of its progress; the command is given again each time. What is counted: ids lost, ids twice, the
lowest cosine to the undisturbed run, files that differ in a byte. Each run is a process of its own:

    python benchmarks/ray_engine.py --encode DIRECTORY OUTPUT
"""

import argparse
import csv
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ACTORS = 2
PART = 4096


def write_inputs(directory: Path, rows: int, seed: int) -> None:
    """Four files of three formats, with ids 0 to rows - 1 and short texts, none twice."""
    import gzip

    from lacos_st.embedded.names import sample_path

    with gzip.open(sample_path("nli-train"), "rt", encoding="utf-8") as lines:
        texts = {text for line in lines for text in json.loads(line).values() if isinstance(text, str)}
    starts = sorted({" ".join(text.split()[:3]) for text in texts})
    draw = random.Random(seed)
    records = [{"id": str(row), "text": f"{draw.choice(starts)} {row}"} for row in range(rows)]
    directory.mkdir(parents=True)
    quarter = -(-rows // 4)
    parts = [records[start : start + quarter] for start in range(0, rows, quarter)]
    for name, part in zip(("a.jsonl", "b.jsonl"), parts[:2], strict=True):
        (directory / name).write_text("".join(json.dumps(record) + "\n" for record in part))
    with (directory / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(parts[2])
    pq.write_table(pa.Table.from_pylist(parts[3]), directory / "d.parquet")


def start(inputs: Path, output: Path) -> subprocess.Popen:
    """A run, once it has actors; on a busy machine Ray may need several tries to start."""
    for _ in range(5):
        child = subprocess.Popen([sys.executable, __file__, "--encode", inputs, output])
        while child.poll() is None:
            if actors(child.pid):
                return child
            time.sleep(0.2)
    raise SystemExit("Ray does not start")


def actors(driver: int) -> list[psutil.Process]:
    """The processes below a driver that encode."""
    found = []
    try:
        below = psutil.Process(driver).children(recursive=True)
    except psutil.Error:  # it has ended
        return []
    for process in below:
        try:
            if "MapWorker(MapBatches(Actor))" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def delivered(output: Path) -> int:
    return len(list(output.glob("*.parquet")))


def measure(inputs: Path, output: Path, rows: int) -> dict:
    """A run that nobody disturbs: seconds, and the peak of memory that only the driver or only an actor holds."""
    peak: Counter[str] = Counter()
    child = start(inputs, output)
    began, first = time.perf_counter(), None
    while child.poll() is None:
        try:
            watched = {"driver": [psutil.Process(child.pid)], "actor": actors(child.pid)}
        except psutil.Error:  # it has just ended
            break
        for name, processes in watched.items():
            for process in processes:
                try:
                    memory = process.memory_full_info()
                except psutil.Error:
                    continue
                peak[f"{name} private MB"] = max(peak[f"{name} private MB"], round(memory.uss / 1e6))
                peak[f"{name} resident MB"] = max(peak[f"{name} resident MB"], round(memory.rss / 1e6))
        if first is None and output.exists() and delivered(output):
            first = (time.perf_counter(), delivered(output) * PART)
        time.sleep(2)
    child.wait()
    ended = time.perf_counter()
    assert child.returncode == 0, child.returncode
    return {
        "rows": rows,
        "seconds after the start of actors": round(ended - began, 1),
        "rows a second after the first part": first and round((rows - first[1]) / max(ended - first[0], 1e-9)),
        "bytes a row": round(sum(path.stat().st_size for path in output.glob("*.parquet")) / rows),
        "bytes a row of input": round(sum(path.stat().st_size for path in inputs.iterdir()) / rows),
        **peak,
    }


def disturb(inputs: Path, output: Path, total: int, kills: int, seed: int) -> list[dict]:
    """Kill an actor and the driver in turn, each time somewhere in the next stretch of the run."""
    draw = random.Random(seed)
    points = sorted(draw.sample(range(1, total - 2), kills))
    report = []
    child = start(inputs, output)
    for number, point in enumerate(points):
        while delivered(output) < point or not actors(child.pid):
            assert child.poll() is None, "ended before it was killed"
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.5))
        victim = draw.choice(actors(child.pid)).pid if number % 2 == 0 else child.pid
        os.kill(victim, signal.SIGKILL)
        report.append({"killed": "driver" if victim == child.pid else "actor", "parts there": delivered(output)})
        print(report[-1], flush=True)
        if victim == child.pid:
            child.wait()
            child = start(inputs, output)
    assert child.wait() == 0
    return report


def compare(one: Path, other: Path, rows: int) -> dict:
    first, second = (pq.read_table(path, page_checksum_verification=True) for path in (one, other))
    counts = [Counter(table["id"].to_pylist()) for table in (first, second)]
    vectors = []
    for table in (first, second):
        flat = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        vectors.append(flat[np.argsort(np.array(table["id"].to_pylist(), dtype=np.int64))])
    norms = [np.linalg.norm(rows_, axis=1) for rows_ in vectors]
    return {
        "rows": [table.num_rows for table in (first, second)],
        "rows lost": sum(str(row) not in counts[1] for row in range(rows)),
        "rows twice": sum(count > 1 for count in counts[1].values()),
        "lowest cosine": float((np.sum(vectors[0] * vectors[1], 1) / (norms[0] * norms[1])).min()),
        "files that differ": sum(
            (one / path.name).read_bytes() != path.read_bytes() for path in other.glob("*.parquet")
        ),
        "left over": sorted(path.name for path in other.iterdir() if path.suffix != ".parquet"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encode", nargs=2, type=Path, metavar=("DIRECTORY", "OUTPUT"))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 200_000])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.encode:
        from lacos_st import encode_files

        print(
            encode_files(
                "lacos-bloom", *arguments.encode, actors=ACTORS, part_size=PART, batch_size=128, show_progress=False
            )
        )
        return
    found = {"processor": cpu(), "cores": os.cpu_count(), "actors": ACTORS, "part_size": PART, "runs": []}

    def say() -> None:
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")

    for rows in sorted(arguments.rows, reverse=True):
        inputs = arguments.directory / f"in-{rows}"
        write_inputs(inputs, rows, arguments.seed)
        found["runs"].append(measure(inputs, arguments.directory / f"out-{rows}", rows))
        print(found["runs"][-1], flush=True)
        say()
        if rows == max(arguments.rows) and arguments.kills:
            disturbed, whole = arguments.directory / "disturbed", arguments.directory / f"out-{rows}"
            found["kills"] = disturb(inputs, disturbed, delivered(whole), arguments.kills, arguments.seed)
            found["disturbed"] = compare(whole, disturbed, rows)
            print(found["disturbed"], flush=True)
            say()


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
