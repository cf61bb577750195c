"""Two processes over gloo, each with its half of a batch: values and gradients of the masked losses.

    python tests/training/two_processes.py FILE

One process imports everything once, and forks. Each writes its results to FILE.<rank>. See `test_gather.py`.
"""

import os
import sys

import torch
import torch.distributed as dist
from test_losses import OPTIONS, Lookup, columns, value_and_gradient

from lacos_st.training.losses import CachedMaskedMultipleNegativesRankingLoss, MaskedMultipleNegativesRankingLoss

# Anchor 1 stands in both halves, in the first row of each, and again among the other half's documents; 20 is a positive
# in the first and a hard negative in the second.
TEXTS = [1, 2, 1, 4], [20, 21, 22, 1], [30, 31, 20, 33]


def build(position: int, **more):
    """One of the losses over a fresh model."""
    options, masks = OPTIONS[position // 4], {"mask_margin": (None, 0.1)[position // 2 % 2], **more}
    if position % 2:
        return CachedMaskedMultipleNegativesRankingLoss(Lookup(), mini_batch_size=1, **options, **masks)
    return MaskedMultipleNegativesRankingLoss(Lookup(), **options, **masks)


CASES = range(4 * len(OPTIONS))


def run(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.store", rank=rank, world_size=2)
    half = columns(*(column[2 * rank : 2 * rank + 2] for column in TEXTS))
    results = [value_and_gradient(build(case, gather_across_devices=True), half) for case in CASES]
    torch.save(results, f"{file}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()
    try:
        run(int(child == 0), sys.argv[1])
    finally:
        if child == 0:
            os._exit(0)
    os.waitpid(child, 0)
