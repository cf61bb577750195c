"""What the CPU multiplies fast: fp32, bf16 and int8 products at bloom-560m's sizes, one round each in turn.

Decides which 8-bit form `auto` may take (`lacos_st/decoder/quantization.py`); `docs/performance.md` shows the table.

python benchmarks/products.py --output docs/benchmarks/CPU/products.json
"""

import argparse
from pathlib import Path

import torch
from common import machine, report, time_interleaved

from lacos_st.decoder import kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=660)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved rounds; medians are reported")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    results: dict = {"machine": machine("cpu"), "fast int8": kernels.has_fast_int8()}
    for k, o in ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)):
        x, weight = torch.randn(arguments.tokens, k), torch.randn(o, k)
        q, w = ((tensor * 40).clamp(-127, 127).to(torch.int8) for tensor in (x, weight))
        x16, weight16 = x.bfloat16(), weight.bfloat16()
        backward = torch.randn(arguments.tokens, o).clamp(-3, 3).mul(40).to(torch.int8)
        seconds = time_interleaved(
            {
                "fp32": lambda x=x, w=weight: x @ w.t(),
                "bf16": lambda x=x16, w=weight16: x @ w.t(),
                "int8, torch._int_mm": lambda q=q, w=w: torch._int_mm(q, w.t()),
                "int8, ours": lambda q=q, w=w: kernels.multiply(q, w.t()),
                "int8, ours, backward": lambda q=backward, w=w: kernels.multiply(q, w),
            },
            arguments.repeats,
        )
        work = 2e-9 * arguments.tokens * k * o
        results[f"Gop/s of ({arguments.tokens}, {k}) x ({k}, {o})"] = {n: work / s for n, s in seconds.items()}
    report(results, arguments.output)


if __name__ == "__main__":
    main()
