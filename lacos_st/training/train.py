"""`train(config)`: contrastive LoRA training of an 8-bit decoder, resumable at any moment.

The loop is ST's own trainer, over what `assembly.py` makes of the recipe. This file keeps two promises around it:

- *Nothing is lost.* Work in progress lives in `<output>.run/`: the recipe, the Trainer's checkpoints (adapter,
  optimiser, scheduler, random state), and in the end the model while it is written. Killed at any moment, the same
  call goes on from the newest complete checkpoint and ends with the same adapter bit for bit; Ctrl-C writes one first.
  The finished model appears in `<output>` at once and complete, and then the run directory goes.
- *Nothing is mixed.* One process works on an output at a time; a checkpoint of another recipe or of other data, or a
  finished model, is an error unless `overwrite` is set. With it, too, an interrupted run of the same recipe goes on.

Several processes call `train` alike and are one run (`processes.py`): the first one holds the lock, keeps the run's
directory, shows progress and saves.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from lacos_st.config import LacosConfig
from lacos_st.decoder.allocator import give_memory_back
from lacos_st.decoder.memory import auto_batch_size, available_memory
from lacos_st.errors import LacosError
from lacos_st.files import locked, write_json
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.names import base_config, find
from lacos_st.model.placing import disk_error, finish_move, move_into
from lacos_st.training.assembly import (
    adapter_settings,
    build_arguments,
    build_data,
    build_loss,
    build_model,
    even_batches,
    memory_options,
)
from lacos_st.training.checkpoints import described, go_on, is_finished, latest_checkpoint, prepare
from lacos_st.training.measure import Measure, held_out_loss, sts_sample
from lacos_st.training.processes import by_first, first_before_others, join
from lacos_st.training.progress import EarlyStopping, Progress, checkpoint_on_interrupt
from lacos_st.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from sentence_transformers.base.evaluation import BaseEvaluator

logger = logging.getLogger(__name__)
_CHOSEN = "mini_batch.json"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C came: a checkpoint was written, and the same call goes on from it."""


def train(
    config: LacosConfig,
    *,
    evaluator: BaseEvaluator | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> LacosSentenceTransformer:
    """Train an adapter and save the model to `config.output`.

    Args:
        config: The recipe.
        evaluator: ST evaluator that chooses the best step by its primary metric. Default: the loss on held-out rows.
        callbacks: Further Trainer callbacks.

    Returns:
        The trained model, its best step loaded.

    Raises:
        LacosError: Bad data or settings, or an output that holds something else.
        TrainingInterrupted: Ctrl-C; the run can be resumed.
    """
    processes = join().num_processes
    _check_divides(config.batch_size, processes)
    _check_reports(config.report_to)
    output = Path(config.output).resolve()  # the run is beside it, on its file system, also where it is `.` or a link
    run = Path(f"{output}.run")
    with ExitStack() as held:
        finished, checkpoint = by_first(lambda: _open(config, output, run, held))
        if finished:  # it was killed just before its last step
            model = LacosSentenceTransformer(output)
            model.training_record = json.loads((output / "training.json").read_text(encoding="utf-8"))
            return model
        data = first_before_others(lambda: build_data(config))
        rows = described(data)
        if rows != by_first(lambda: rows):
            raise LacosError("This process reads other data than the first one. All need the same files.")
        checkpoint = by_first(lambda: go_on(config, rows, run, checkpoint))
        mini_batch = by_first(lambda: _mini_batch(config, data[0], run, checkpoint, processes))
        while True:
            try:
                model = _fit(config, run, checkpoint, data, mini_batch, evaluator, callbacks)
                break
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                mini_batch = _smaller(config, mini_batch, processes, error)
                write_json(run / _CHOSEN, mini_batch)
                checkpoint = latest_checkpoint(run / "checkpoints")
        by_first(lambda: _place(model, output, run))
    return model


def _open(config: LacosConfig, output: Path, run: Path, held: ExitStack) -> tuple[bool, Path | None]:
    """Take hold of the run's directory: whether all is done already, else the checkpoint to go on from, if any."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LacosError(f"The output {config.output!r} cannot be made: {error.strerror}. Choose another.") from error
    held.enter_context(locked(run))
    held.enter_context(_gone_if_nothing_came(run))
    finish_move(output)  # which a kill may have interrupted
    if is_finished(config, output, run):
        shutil.rmtree(run)
        return True, None
    find(config.base, config.revision)
    return False, prepare(config, output, run)


def _place(model: LacosSentenceTransformer, output: Path, run: Path) -> None:
    """Write the model beside the output, move it there at once, and take the run's directory away."""
    finished = run / "finished" / output.name  # written in there: what a kill leaves goes with the run
    model.save_pretrained(str(finished))
    try:
        shutil.copyfile(finished / "training.json", run / "training.json")
        move_into(finished, output)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise disk_error(error, output) from error
        model.save_pretrained(str(output))  # a mount point, into which nothing can be moved from beside it
        shutil.rmtree(finished)
    shutil.rmtree(run)


@contextmanager
def _gone_if_nothing_came(run: Path) -> Iterator[None]:
    """Take a new run's directory away again after a mistake that came before its first checkpoint."""
    begun = run.exists()
    try:
        yield
    except LacosError:
        if not begun and latest_checkpoint(run / "checkpoints") is None:
            shutil.rmtree(run, ignore_errors=True)
        raise


def _check_divides(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        low = batch_size // processes * processes
        raise LacosError(
            f"batch_size={batch_size} rows do not divide evenly among {processes} processes: choose "
            f"{f'{low} or ' if low else ''}{low + processes} (--batch-size), or another number of processes."
        )


def _check_reports(names: list[str]) -> None:
    """Refuse at once what the Trainer refuses when data and model are loaded."""
    try:
        for callback in get_reporting_integration_callbacks([name for name in names if name not in ("none", "all")]):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise LacosError(
            f"report_to={names} cannot be used here: {error} Install what it needs, or leave it out."
        ) from error


def _fit(
    config: LacosConfig,
    run: Path,
    checkpoint: Path | None,
    data: tuple[DatasetDict, Dataset],
    mini_batch: int | None,
    evaluator: BaseEvaluator | None,
    callbacks: list[TrainerCallback] | None,
) -> LacosSentenceTransformer:
    """One attempt, from the seed or a checkpoint to the best step."""
    if config.gradient_checkpointing and not torch.cuda.is_available():
        give_memory_back()  # else the heap's holes eat most of what checkpointing saves
    set_seed(config.seed)
    state = PartialState()
    rows = sum(data[0].num_rows.values())
    model = build_model(config)
    # Without examples for the Hub's widget ST would embed some of the data to find them.
    model.model_card_data.widget = _widget(data[1])
    if evaluator is not None and evaluator.primary_metric is None:
        evaluator(model)  # ST's evaluators name their metric when they first run, and the Trainer asks before
    held, size = even_batches(data[1], config.batch_size, state.num_processes)
    arguments = build_arguments(config, run, data[0], evaluator, model, state.num_processes, size)
    arguments.eval_on_start = checkpoint is None  # the loss before the first step; a checkpoint's log has it
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data[0],
        eval_dataset=held,
        loss=build_loss(config, model, mini_batch, gather=state.num_processes > 1),
        evaluator=evaluator,
        callbacks=list(callbacks or []),
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None and state.is_main_process:
        trainer.add_callback(Progress(rows))
    if config.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(config.early_stopping_patience))
    if state.num_processes > 1:
        torch.manual_seed(config.seed + state.process_index)  # else dropout takes the same units in each
    if checkpoint is not None:
        _say_other_processes(checkpoint, state.num_processes)
    measure = Measure(data[1], config.batch_size, config.seed)
    before = by_first(lambda: _before(run, model, measure))
    model.model_card_data.eval_results_dict.clear()  # the card's figures are those after training
    started = time.time()
    with checkpoint_on_interrupt(trainer) as interrupted:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interrupted.is_set():
        raise TrainingInterrupted(
            f"Stopped at step {trainer.state.global_step}; a checkpoint is in {str(run)!r}. "
            "Run the same command again to go on."
        )
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else autocast stays around `forward`
    model.eval()
    log, best = trainer.state.log_history, trainer.state.best_global_step
    own = [
        {**before["held_out"], **held_out_loss(log, 0)},
        {**by_first(lambda: measure(model, best)), **held_out_loss(log, best)},
    ]
    model.training_record = {
        "recipe": {**config.to_dict(), **adapter_settings(model)},
        "steps": trainer.state.global_step,
        "best_step": best,
        "best_metric": trainer.state.best_metric,
        "rows": rows,
        "mini_batch_size": mini_batch,
        "seconds": round(time.time() - started),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": _device_name(model.device),
        "processes": state.num_processes,
        "peak_bytes": _peak_bytes(model.device),
        "scores_before": before["scores"],
        "scores_after": by_first(lambda: sts_sample(model)),
        "held_out": {"queries": measure.queries, "texts": measure.texts, "before": own[0], "after": own[1]},
        "log": log,
    }
    return model


def _before(run: Path, model: LacosSentenceTransformer, measure: Measure) -> dict[str, dict[str, float]]:
    """Scores of the model as it is before the first step; kept beside the checkpoints, and read when a run goes on."""
    kept = run / "before.json"
    if kept.is_file():
        found: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    found = {"scores": sts_sample(model), "held_out": measure(model)}
    write_json(kept, found)
    if found["held_out"]:
        scores = ", ".join(f"{name} {value:.1f}" for name, value in found["held_out"].items())
        print(f"before the first step: {scores} ({measure.queries:,} held-out queries)", flush=True)
    return found


def _say_other_processes(checkpoint: Path, processes: int) -> None:
    began = len(list(checkpoint.glob("rng_state*.pth")))  # one of each process
    if began != processes:
        logger.warning(
            "This run had %d process(es) and goes on with %d: its batches stay what they are, up to rows that do not "
            "divide evenly; dropout above 0 takes other units.", began, processes,
        )  # fmt: skip


def _mini_batch(
    config: LacosConfig, data: DatasetDict, run: Path, checkpoint: Path | None, processes: int
) -> int | None:
    """Texts that a process embeds at a time; None: all of its share.

    Kept beside the checkpoints: with other mini-batches dropout would fall differently.
    """
    chosen = run / _CHOSEN
    if checkpoint is not None and chosen.is_file():
        return json.loads(chosen.read_text(encoding="utf-8"))
    rows = config.mini_batch_size
    if rows is None and config.auto_batch_size:
        on_cpu = not torch.cuda.is_available()
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if on_cpu else 1  # processes in the same memory
        rows = auto_batch_size(
            base_config(config.base, config.revision),
            available=0.9 * available_memory("cpu") / beside if on_cpu else None,
            largest=config.batch_size // processes,
            device="cpu" if on_cpu else "cuda",
            texts=max(map(len, data.column_names.values())),
            **memory_options(config),
        )
        rows = None if rows == config.batch_size // processes else rows
    write_json(chosen, rows)
    return rows


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _smaller(config: LacosConfig, mini_batch: int | None, processes: int, error: BaseException) -> int:
    """Half the texts at a time; gradient caching keeps the batch, and so what is learnt, the same."""
    now = mini_batch or config.batch_size // processes
    if not config.auto_batch_size or now == 1 or processes > 1:  # others wait for a process that starts anew
        length = f" of up to {config.max_seq_length} tokens" if config.max_seq_length else ""
        auto = "auto_batch_size (--auto-batch-size), " if processes == 1 else ""
        raise LacosError(
            f"The memory does not hold {now} rows{length} at a time. Set {auto}a mini_batch_size (--mini-batch-size), "
            "gradient_checkpointing or a smaller max_seq_length. What was trained so far is kept; run again to go on."
        ) from error
    warnings.warn(f"Out of memory: going on with {now // 2} rows at a time instead of {now}.", stacklevel=3)
    torch.cuda.empty_cache()
    return now // 2


def _widget(data: Dataset) -> list[dict[str, Any]]:
    texts = [list(row.values()) for row in data.select(range(min(3, len(data))))]
    return [{"source_sentence": row[0], "sentences": row[1:]} for row in texts]


def _peak_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
