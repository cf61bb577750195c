"""Several processes that train as one (`torchrun`, `accelerate launch`): who does what, and which rows each embeds.

A recipe says what is learnt, and the number of processes only how fast: `batch_size` is the batch whose texts are
contrasted, however many processes share it. sentence-transformers' sampler draws that batch as it does for one
process, `SharedBatches` cuts it into equal parts, one for each process, and accelerate hands part *i* to process *i*.
The losses gather the embeddings (`gather_across_devices`), so each row meets the same negatives as in one process, and
DDP's mean of the gradients is the gradient of the whole batch. The price: of a source's last, incomplete batch up to
`processes - 1` rows are left out in an epoch, where it does not divide evenly.

What is done once, such as checking the output, choosing a size and saving, is done by the first process; `by_first`
hands the outcome, a mistake included, to the others, so that none waits for one that has failed. The directory of a run
must therefore be one that all processes see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from sentence_transformers.base.sampler import ProportionalBatchSampler

from lacos_st.errors import LacosError, ToldByFirstError

Outcome = TypeVar("Outcome")


def join() -> PartialState:
    """Join the other processes of this run, if there are any, each on a device of its own.

    Returns:
        accelerate's state: `num_processes`, `process_index`, `is_main_process`.

    Raises:
        LacosError: One process sees several GPUs, or the launcher asks for sharded parameters.
    """
    for name, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise LacosError(
                f"The launcher asks for {what}, which shards floating-point parameters and cannot shard "
                "bitsandbytes' 8-bit ones. Start the processes without it (torchrun, or accelerate launch "
                "--multi_gpu): each holds the whole 8-bit base, 7 GB at 7 billion parameters."
            )
    gpus = torch.cuda.device_count()
    if gpus > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise LacosError(
            f"{gpus} GPUs are visible, and one process trains on one. Start a process for each, torchrun "
            f"--nproc-per-node {gpus} -m lacos_st.cli train ..., or choose one: CUDA_VISIBLE_DEVICES=0."
        )
    return PartialState(cpu=not torch.cuda.is_available())


def leave() -> None:
    """Take leave of the other processes, when all is done."""
    PartialState().destroy_process_group()


def by_first(function: Callable[[], Outcome]) -> Outcome:
    """Call a function in the first process, and have what it returns, or its mistake, in all of them.

    Args:
        function: Returns something that can be pickled.

    Returns:
        What it returned.

    Raises:
        LacosError: What it raised; in the other processes a `ToldByFirstError`.
    """
    state = PartialState()
    if state.num_processes == 1:
        return function()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = function()
        except BaseException as error:
            broadcast_object_list([None, f"{type(error).__name__}: {error}"])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ToldByFirstError(f"The first process stopped: {outcome[1]}")
    return outcome[0]


def first_before_others(function: Callable[[], Outcome]) -> Outcome:
    """Call a function in every process, in the first one before the others: what it fetches is there when they ask.

    Args:
        function: To be called; a mistake of it is told once.

    Returns:
        What it returned here.

    Raises:
        LacosError: As of `by_first`.
    """
    done: list[Outcome] = []
    by_first(lambda: done.append(function()))
    return done[0] if done else function()


class SharedBatches(ProportionalBatchSampler):
    """sentence-transformers' batches, each of one source, cut into one equal part for each process.

    It yields the parts one after the other, and accelerate gives the i-th of them to process i.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processes = PartialState().num_processes
        self.whole = self.batch_samplers[0].batch_size
        self.batch_size = None  # tells accelerate that parts are of unlike sizes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the parts of each batch."""
        for batch in super().__iter__():
            size = len(batch) // self.processes
            for part in range(self.processes if size else 0):
                yield batch[part * size : (part + 1) * size]

    def __len__(self) -> int:
        """Number of parts."""
        tails = [len(source) % self.whole for source in self.dataset.datasets]
        return self.processes * (super().__len__() - sum(0 < tail < self.processes for tail in tails))
