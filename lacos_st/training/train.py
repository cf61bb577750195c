"""`train(config)`: contrastive LoRA training of an 8-bit decoder, resumable at any moment.

The loop is ST's own trainer, over what `assembly.py` makes of the recipe. This file keeps two promises around it:

- *Nothing is lost.* Work in progress lives in `<output>.run/`: the recipe, the Trainer's checkpoints (adapter,
  optimiser, scheduler, random state), and in the end the model while it is written. Killed at any moment, the same
  call goes on from the newest complete checkpoint and ends with the same adapter bit for bit; Ctrl-C writes one first.
  The finished model appears in `<output>` at once and complete, and then the run directory goes.
- *Nothing is mixed.* One process works on an output at a time; a checkpoint of another recipe or of other data, or a
  finished model, is an error unless `overwrite` is set. With it, too, an interrupted run of the same recipe goes on.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from lacos_st.config import LacosConfig
from lacos_st.decoder.allocator import give_memory_back
from lacos_st.decoder.memory import auto_batch_size
from lacos_st.embedded.names import sample_path
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
    memory_options,
)
from lacos_st.training.checkpoints import go_on, is_finished, latest_checkpoint, prepare
from lacos_st.training.measure import Measure, held_out_loss
from lacos_st.training.progress import EarlyStopping, Progress, checkpoint_on_interrupt

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from sentence_transformers.base.evaluation import BaseEvaluator

_STS = sample_path("sts17")


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
    _check_processes()
    _check_reports(config.report_to)
    output = Path(config.output).resolve()  # the run is beside it, on its file system, also where it is `.` or a link
    run = Path(f"{output}.run")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LacosError(f"The output {config.output!r} cannot be made: {error.strerror}. Choose another.") from error
    with locked(run), _gone_if_nothing_came(run):
        finish_move(output)  # which a kill may have interrupted
        if is_finished(config, output, run):  # it was killed just before its last step
            shutil.rmtree(run)
            model = LacosSentenceTransformer(output)
            model.training_record = json.loads((output / "training.json").read_text(encoding="utf-8"))
            return model
        find(config.base, config.revision)
        checkpoint = prepare(config, output, run)
        data = build_data(config)
        checkpoint = go_on(config, data, run, checkpoint)
        # Kept beside the checkpoints: with other mini-batches dropout would fall differently.
        chosen = run / "mini_batch.json"
        if checkpoint is not None and chosen.is_file():
            mini_batch = json.loads(chosen.read_text(encoding="utf-8"))
        else:
            mini_batch = config.mini_batch_size or _mini_batch_that_fits(config, data[0])
            write_json(chosen, mini_batch)
        while True:
            try:
                model = _fit(config, run, checkpoint, data, mini_batch, evaluator, callbacks)
                break
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                mini_batch = _smaller(config, mini_batch, error)
                write_json(chosen, mini_batch)
                checkpoint = latest_checkpoint(run / "checkpoints")
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
    return model


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


def _check_processes() -> None:
    """Refuse to be one of several: each would train alone, and find the output locked by another."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun and its like set it
    if processes > 1:
        raise LacosError(
            f"{processes} processes were started, and lacos-st train works in one process so far: run it without "
            "torchrun."
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


class _Trainer(SentenceTransformerTrainer):
    """ST's, and it says what to do where a checkpoint cannot be written."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As ST's; before the first step it leaves the random state alone, so that measuring changes no adapter."""
        with torch.random.fork_rng(enabled=self.state.global_step == 0):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) or re.search("PytorchStreamWriter|inline_container", str(error)):
                raise LacosError(
                    f"Writing a checkpoint to {self.args.output_dir!r} failed ({str(error).splitlines()[0]}). Free "
                    "space or mend the directory, and run again: training goes on from the last complete checkpoint."
                ) from error
            raise


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
    rows = sum(data[0].num_rows.values())
    model = build_model(config)
    # Without examples for the Hub's widget ST would embed some of the data to find them.
    model.model_card_data.widget = _widget(data[1])
    if evaluator is not None and evaluator.primary_metric is None:
        evaluator(model)  # ST's evaluators name their metric when they first run, and the Trainer asks before
    arguments = build_arguments(config, run, data[0], evaluator, model)
    arguments.eval_on_start = checkpoint is None  # the loss before the first step; a checkpoint's log has it
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=data[0],
        eval_dataset=data[1],
        loss=build_loss(config, model, mini_batch),
        evaluator=evaluator,
        callbacks=list(callbacks or []),
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Progress(rows))
    if config.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(config.early_stopping_patience))
    measure = Measure(data[1], config.batch_size, config.seed)
    before = _before(run, model, measure)
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
    own = [{**before["held_out"], **held_out_loss(log, 0)}, {**measure(model, best), **held_out_loss(log, best)}]
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
        "peak_bytes": _peak_bytes(model.device),
        "scores_before": before["scores"],
        "scores_after": sts_sample(model),
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


def _mini_batch_that_fits(config: LacosConfig, data: DatasetDict) -> int | None:
    """With `auto_batch_size`: texts to embed at a time so that a step fits; None where the whole batch does."""
    if not config.auto_batch_size:
        return None
    rows = auto_batch_size(
        base_config(config.base, config.revision),
        largest=config.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        texts=max(map(len, data.column_names.values())),
        **memory_options(config),
    )
    return None if rows == config.batch_size else rows


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _smaller(config: LacosConfig, mini_batch: int | None, error: BaseException) -> int:
    """Half the texts at a time; gradient caching keeps the batch, and so what is learnt, the same."""
    now = mini_batch or config.batch_size
    if not config.auto_batch_size or now == 1:
        length = f" of up to {config.max_seq_length} tokens" if config.max_seq_length else ""
        raise LacosError(
            f"The memory does not hold {now} rows{length} at a time. Set auto_batch_size (--auto-batch-size), a "
            "mini_batch_size, gradient_checkpointing or a smaller max_seq_length. What was trained so far is kept; "
            "run again to go on."
        ) from error
    warnings.warn(f"Out of memory: going on with {now // 2} rows at a time instead of {now}.", stacklevel=3)
    torch.cuda.empty_cache()
    return now // 2


def sts_sample(model: SentenceTransformer) -> dict[str, float]:
    """Spearman correlation x 100 on the four STS17 pairs that come with the package.

    Args:
        model: Any model.

    Returns:
        "en-en", "es-es", "es-en", "en-ar" -> correlation of cosine similarities with the gold scores.
    """
    scores = {}
    for pair in ("en-en", "es-es", "es-en", "en-ar"):
        with gzip.open(_STS / f"sts17.{pair}.test.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        first, second, gold = ([row[key] for row in rows] for key in ("sentence1", "sentence2", "score"))
        result = EmbeddingSimilarityEvaluator(
            first, second, gold, main_similarity="cosine", name=f"sts17-{pair}", write_csv=False
        )(model)
        scores[pair] = 100 * float(result[f"sts17-{pair}_spearman_cosine"])
    return scores


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
