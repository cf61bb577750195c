"""Attention's gradient on a CPU: PyTorch's fused backward pass against plain products, in fp32 and bf16.

Decides where `lacos_st/decoder/attention.py` leaves the fused one. Times are of the backward pass alone, of one group
of equally long sequences; the error is the gradient's against fp64, relative.

python benchmarks/attention.py --output docs/benchmarks/CPU/attention.json
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lacos_st.decoder.attention import _bias, _ProductsBackward

CASES = {  # sequences, heads, tokens, head size
    "512 x 20 tokens, 8 heads of 32": (512, 8, 20, 32),
    "64 x 20 tokens, 16 heads of 64": (64, 16, 20, 64),
    "64 x 64 tokens, 16 heads of 64": (64, 16, 64, 64),
    "32 x 128 tokens, 16 heads of 64": (32, 16, 128, 64),
}


def gradient(products: bool, qkv: Tensor, bias: Tensor, dy: Tensor) -> tuple[float, Tensor]:
    """(seconds of the backward pass, gradient of qkv (sequences, tokens, heads, 3, size))."""
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    attend = _ProductsBackward.apply if products else scaled_dot_product_attention
    out = attend(q, k, v, bias)
    start = time.perf_counter()
    (found,) = torch.autograd.grad(out, qkv, dy)
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds; medians are reported")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    for case, (count, heads, length, size) in CASES.items():
        torch.manual_seed(0)
        exact = torch.randn(count, length, heads, 3, size).bfloat16().double().requires_grad_()
        dy = torch.randn(count, heads, length, size).bfloat16()
        reference = gradient(False, exact, _bias(heads, length, "causal", torch.float64, exact.device), dy.double())[1]
        forms = {
            f"{kind} {str(dtype).removeprefix('torch.')}": (products, dtype)
            for dtype in (torch.float32, torch.bfloat16)
            for kind, products in (("fused", False), ("products", True))
        }
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        errors = {}
        for _ in range(arguments.repeats):
            for name, (products, dtype) in forms.items():
                inputs = exact.detach().to(dtype).requires_grad_()
                bias = _bias(heads, length, "causal", dtype, inputs.device)
                spent, found = gradient(products, inputs, bias, dy.to(dtype))
                seconds[name].append(spent)
                errors[name] = float((found.double() - reference).norm() / reference.norm())
        results[f"{case}: milliseconds"] = {name: 1e3 * median(values) for name, values in seconds.items()}
        results[f"{case}: relative error"] = errors
    report(results, arguments.output)


if __name__ == "__main__":
    main()
