"""sentence-transformers' trainer, where a run must survive: faults told at once, and resuming that changes nothing.

A loss that is no number and a disk that is full stop the run with what to do. A checkpoint is sealed when it is
written: digests of its files, by which a damaged one is told from a whole one. A run that goes on takes the batches of
its own epoch, and measuring before the first step leaves the random state alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch.utils.data import DataLoader

from lacos_st.errors import LacosError
from lacos_st.training.checkpoints import seal


class Trainer(SentenceTransformerTrainer):
    """ST's, with what the head of this file says."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step.

        Raises:
            LacosError: The loss is not a number, or infinite.
        """
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):  # the Trainer itself would leave it out of the log, and go on
            raise LacosError(
                f"The loss is {loss.item()} in step {self.state.global_step + 1}. What was saved before is kept. Start "
                f"anew (--overwrite) with a smaller learning_rate than {self.args.learning_rate:g}, or in full "
                "precision (--quantization none)."
            )
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As ST's; a run of several processes that goes on in a later epoch takes that epoch's batches.

        transformers hands the epoch one wrapper down, and on resuming there are two: accelerate's passes it on.
        """
        loader = super().get_train_dataloader()
        if self.args.world_size > 1:
            shard = loader.batch_sampler
            shard.set_epoch = shard.batch_sampler.set_epoch
        return loader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As ST's; before the first step it leaves the random state alone, so that measuring changes no adapter."""
        with torch.random.fork_rng(enabled=self.state.global_step == 0):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                seal(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) or re.search("PytorchStreamWriter|inline_container", str(error)):
                raise LacosError(
                    f"Writing a checkpoint to {self.args.output_dir!r} failed ({str(error).splitlines()[0]}). Free "
                    "space or mend the directory, and run again: training goes on from the last complete checkpoint."
                ) from error
            raise
