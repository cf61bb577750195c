"""Callbacks around the Trainer: progress that says what matters, also why it stops, and Ctrl-C that loses nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from sentence_transformers import SentenceTransformerTrainer
from transformers import EarlyStoppingCallback, TrainerCallback


class Progress(TrainerCallback):
    """A progress bar with loss and pairs per second, lines where there is no terminal; an epoch has so many rows.

    Of several processes the first one shows it.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        begun = state.global_step
        self.bar = tqdm(total=state.max_steps, initial=begun, desc="training", unit="step", disable=None)
        if begun:
            self.bar.write(f"going on from step {begun} of {state.max_steps}")
        self.started, self.first = time.time(), state.epoch or 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            speed = (state.epoch - self.first) * self.rows / max(time.time() - self.started, 1e-9)
            logs["pairs_per_second"] = round(speed, 1)
            loss = f"{float(logs['loss']):.3f}"
            self.bar.set_postfix({"loss": loss, "pairs/s": f"{speed:.1f}"})
            if self.bar.disable:
                self.bar.write(f"step {state.global_step} of {state.max_steps}: loss {loss}, {speed:.1f} pairs/s")
        elif logs and "eval_loss" in logs:
            self.bar.write(f"step {state.global_step}: held-out loss {float(logs['eval_loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, which says that it stops."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if control.should_training_stop and state.global_step < state.max_steps:
            from tqdm.auto import tqdm

            tqdm.write(
                f"step {state.global_step} of {state.max_steps}: stopped early, as {self.early_stopping_patience} "
                f"evaluation(s) were no better than step {state.best_global_step}"
            )


class _StopAndSave(TrainerCallback):
    def __init__(self, interrupted: threading.Event, accelerator: Accelerator) -> None:
        self.interrupted, self.accelerator = interrupted, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted.is_set():
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():  # in any process: all must stop at the same step
            self.interrupted.set()
            control.should_save = control.should_training_stop = True


@contextmanager
def checkpoint_on_interrupt(trainer: SentenceTransformerTrainer) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a checkpoint and an orderly stop; a second one stops at once."""
    interrupted = threading.Event()
    trainer.add_callback(_StopAndSave(interrupted, trainer.accelerator))
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    first = math.inf

    def handle(*_: Any) -> None:
        nonlocal first
        if interrupted.is_set() and time.monotonic() > first + 1:  # a launcher may pass a terminal's signal on again
            raise KeyboardInterrupt
        if not interrupted.is_set() and PartialState().is_main_process:
            print("\nInterrupted: writing a checkpoint after this step. Ctrl-C again stops at once.", flush=True)
        first = min(first, time.monotonic())
        interrupted.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
