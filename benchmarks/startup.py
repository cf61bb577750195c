"""What each command imports, in processor seconds, beside sentence-transformers and MTEB alone.

    python benchmarks/startup.py

The cases take turns; each figure is the least of --rounds, after one that warms the disk. Processor time, as other work
on the machine changes the clock's by more than what is measured.
"""

import argparse
import resource
import subprocess
import sys

_MODEL = "from lacos_st.model.model import LacosSentenceTransformer"
CASES = {
    "sentence-transformers": "import sentence_transformers",
    "train": "from lacos_st.training.train import train",
    "encode": f"from lacos_st.encoding.encode import encode_file; {_MODEL}",
    "similarity, merge, info": _MODEL,
    "memory": "from lacos_st.decoder.memory import predict; from lacos_st.training.assembly import memory_options",
    "export": "from lacos_st.export.floating import load_floating",
    "trim": "from lacos_st.export.trim import trim_vocabulary",
    "evaluate": "from lacos_st.evaluation.evaluate import evaluate",
    "MTEB": "import mteb",
}


def seconds(code: str) -> float:
    """Processor seconds of a Python that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(rounds + 1):
        for name, code in CASES.items():
            found[name].append(seconds(code))
            print(f"round {turn}, {name}: {found[name][-1]:.2f} s", flush=True)
    first = min(found["sentence-transformers"][1:])
    for name, values in found.items():
        print(f"{name:<24}{min(values[1:]):6.2f} s {min(values[1:]) / first:6.2f}")


if __name__ == "__main__":
    main()
