"""Cost against the number of tokens, and against padding: both should be straight lines, the second flat.

python benchmarks/linearity.py --layers 6 --output linearity.json --plot linearity.png
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from common import add_arguments, build, checkpoint, machine, report, time_interleaved

LENGTH = 20
SENTENCES = [4, 8, 16, 32, 64, 128, 256]
WIDTHS = [20, 40, 80, 160]


def batch(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` sentences of 20 tokens padded to ``width``."""
    ids = torch.randint(1, 8000, (count, width))
    mask = torch.zeros(count, width, dtype=torch.long)
    mask[:, -LENGTH:] = 1
    return ids, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    model = build("ours auto", checkpoint(arguments.layers, arguments.hidden, arguments.heads))
    runs = {f"{n * LENGTH} tokens": batch(n, LENGTH) for n in SENTENCES}
    runs |= {f"32 sentences padded to {width}": batch(32, width) for width in WIDTHS}
    with torch.inference_mode():
        functions = {name: partial(model, ids, attention_mask=mask) for name, (ids, mask) in runs.items()}
        times = time_interleaved(functions, arguments.repeats)
    growth = [times[f"{n * LENGTH} tokens"] for n in SENTENCES]
    padded = [times[f"32 sentences padded to {width}"] for width in WIDTHS]
    results = {
        "machine": machine(),
        "seconds": times,
        "summary": {
            "seconds for 64 x the tokens, over 64 x the seconds of one": growth[-1] / growth[0] / 64,
            "seconds padded 8-fold over unpadded": padded[-1] / padded[0],
        },
    }
    report(results, arguments.output)
    if arguments.plot:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
        left.loglog([n * LENGTH for n in SENTENCES], growth, "o-", label="measured")
        largest = growth[-1] / SENTENCES[-1]
        left.loglog([n * LENGTH for n in SENTENCES], [n * largest for n in SENTENCES], "--", label="linear")
        left.set(xlabel="tokens", ylabel="seconds a batch")
        left.legend()
        right.plot(WIDTHS, padded, "o-")
        right.set(xlabel=f"padded length of 32 sentences of {LENGTH} tokens", ylim=(0, 1.3 * max(padded)))
        plt.tight_layout()
        plt.savefig(arguments.plot, dpi=110)


if __name__ == "__main__":
    main()
