"""`train(config)`: contrastive LoRA training of an 8-bit BLOOM, resumable at any moment.

The loop is ST's own trainer. This file chooses its arguments and keeps two promises around it:

- *Nothing is lost.* Work in progress lives in `<output>.run/`: the recipe and the Trainer's checkpoints (adapter,
  optimiser, scheduler, random state). Killed at any moment, the same call goes on from the newest complete
  checkpoint and ends with the same adapter bit for bit; Ctrl-C writes one first. The finished model appears in
  `<output>` at once and complete, and then the run directory goes.
- *Nothing is mixed.* One process works on an output at a time; a run directory of another recipe, or a finished
  model, is an error unless `overwrite` is set.
"""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import sys
import threading
import time
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from lacos_st.config import LacosConfig, LacosError
from lacos_st.data import load_training_data
from lacos_st.files import locked, write_json
from lacos_st.losses import CachedMaskedMultipleNegativesRankingLoss, MaskedMultipleNegativesRankingLoss
from lacos_st.model import LacosSentenceTransformer
from lacos_st.pooling import LacosPooling
from lacos_st.quantization import default_compute_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset
    from sentence_transformers.base.evaluation import BaseEvaluator

_EVALUATIONS = 10  # evaluations and checkpoints in a run, unless eval_steps says otherwise
_HELD_OUT = 512  # rows of the training data that choose the best step where no eval_data is given
# Settings that may change between a run and its continuation without changing what is learnt.
_STS = Path(__file__).parent / "assets" / "sts"
_FREE = {"output", "overwrite", "report_to", "logging_steps"}


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
    output, run = Path(config.output), Path(f"{config.output}.run")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LacosError(f"The output {str(output)!r} cannot be made: {error.strerror}. Choose another.") from error
    with locked(run):
        checkpoint = _prepare(config, output, run)
        train_data, eval_data = _build_data(config)
        set_seed(config.seed)
        model = _build_model(config)
        # Without examples for the Hub's widget ST would embed some of the data to find them.
        model.model_card_data.widget = _widget(eval_data)
        arguments = _arguments(config, run, len(train_data), evaluator)
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=train_data,
            eval_dataset=eval_data,
            loss=build_loss(config, model),
            evaluator=evaluator,
            callbacks=list(callbacks or []),
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(_Progress(config.batch_size * config.gradient_accumulation_steps))
        if config.early_stopping_patience is not None:
            trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
        before = sts_sample(model)
        started = time.time()
        with _checkpoint_on_interrupt(trainer) as interrupted:
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except (OSError, RuntimeError) as error:
                if isinstance(error, OSError) or "PytorchStreamWriter" in str(error):
                    raise LacosError(
                        f"Writing a checkpoint to {str(run)!r} failed ({str(error).splitlines()[0]}). Free space or "
                        "mend the directory, and run again: training goes on from the last complete checkpoint."
                    ) from error
                raise
        if interrupted.is_set():
            raise TrainingInterrupted(
                f"Stopped at step {trainer.state.global_step}; a checkpoint is in {str(run)!r}. "
                "Run the same command again to go on."
            )
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else autocast stays around `forward`
        model.eval()
        model.training_record = {
            "recipe": config.to_dict(),
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "best_metric": trainer.state.best_metric,
            "rows": len(train_data),
            "seconds": round(time.time() - started),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "device": _device_name(model.device),
            "peak_bytes": _peak_bytes(model.device),
            "scores_before": before,
            "scores_after": sts_sample(model),
        }
        model.save_pretrained(str(output))
        write_json(output / "training.json", {**model.training_record, "log": trainer.state.log_history})
        shutil.rmtree(run)
    return model


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
        result = EmbeddingSimilarityEvaluator(first, second, gold, main_similarity="cosine", write_csv=False)(model)
        scores[pair] = 100 * float(result["spearman_cosine"])
    return scores


def build_loss(config: LacosConfig, model: LacosSentenceTransformer) -> torch.nn.Module:
    """The contrastive objective that a recipe describes.

    Args:
        config: The recipe.
        model: The model to train.

    Returns:
        A plain loss, or its cached twin where `mini_batch_size` is set.
    """
    options: dict[str, Any] = {
        "scale": config.scale,
        "mask_duplicates": config.mask_duplicates,
        "mask_margin": config.mask_margin,
    }
    if config.symmetric_loss:
        options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    if config.mini_batch_size is not None:
        return CachedMaskedMultipleNegativesRankingLoss(model, mini_batch_size=config.mini_batch_size, **options)
    return MaskedMultipleNegativesRankingLoss(model, **options)


def latest_checkpoint(directory: Path) -> Path | None:
    """Find the newest checkpoint from which training can go on exactly.

    Complete means: adapter, optimiser, scheduler and random state are readable, and the Trainer's own state, which
    is written last, is there. Incomplete ones are skipped with a warning.

    Args:
        directory: Where `checkpoint-<step>` directories lie.

    Returns:
        Its path, or None.
    """
    found = [path for path in directory.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        problem = _incomplete(path)
        if problem is None:
            return path
        warnings.warn(f"Skipping the incomplete checkpoint {str(path)!r}: {problem}.", stacklevel=2)
    return None


def _incomplete(path: Path) -> str | None:
    """What keeps a checkpoint from being resumed, or None."""
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(str(path / "adapter_model.safetensors"), framework="pt") as tensors:
            if not list(tensors.keys()):
                return "its adapter is empty"
        for name in ("optimizer.pt", "scheduler.pt"):
            with zipfile.ZipFile(path / name) as archive:
                if archive.testzip() is not None:
                    return f"{name} is damaged"
        if not list(path.glob("rng_state*.pth")):
            return "its random state is missing"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except Exception as error:  # safetensors raises a private type for a torn file
        return f"it cannot be read ({error})"
    return None


def _prepare(config: LacosConfig, output: Path, run: Path) -> Path | None:
    """Make or check the run directory; return the checkpoint to go on from."""
    if config.overwrite:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / "recipe.yaml").unlink(missing_ok=True)
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise LacosError(
            f"The output {str(output)!r} exists already and is not empty. Choose another output, or set overwrite "
            "(--overwrite) to replace the model there."
        )
    recipe = run / "recipe.yaml"
    run.mkdir(parents=True, exist_ok=True)
    if not recipe.is_file():
        config.to_yaml(recipe)
        return None
    earlier = LacosConfig.from_yaml(recipe)
    changed = [
        f"{item.name}: {getattr(earlier, item.name)!r} there, {getattr(config, item.name)!r} now"
        for item in fields(config)
        if item.name not in _FREE and getattr(earlier, item.name) != getattr(config, item.name)
    ]
    if changed:
        raise LacosError(
            f"An unfinished run with another recipe is in {str(run)!r} ({'; '.join(changed)}). Use its settings to "
            "go on with it, or set overwrite (--overwrite) to start afresh."
        )
    return latest_checkpoint(run / "checkpoints")


def _build_model(config: LacosConfig) -> LacosSentenceTransformer:
    model = LacosSentenceTransformer(
        config.base,
        revision=config.revision,
        pooling=config.pooling,
        transformer_options={
            "quantization": config.quantization,
            "compute_form": config.compute_form,
            "training_form": config.training_form,
            "template": config.template,
            "attention": config.attention,
            "max_seq_length": config.max_seq_length,
        },
    )
    if model[1].pooling_mode != config.pooling:
        model[1] = LacosPooling(model.get_embedding_dimension(), config.pooling)
    if model.transformer.adapter_names:
        model.transformer.set_trainable()
    else:
        model.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout, tuple(config.lora_targets))
    return model


def _build_data(config: LacosConfig) -> tuple[Dataset, Dataset]:
    options: dict[str, Any] = {
        "on_bad_row": config.on_bad_row,
        "columns": config.columns or None,
        "min_score": config.min_score,
        "seed": config.seed,
    }
    train_sources = config.train_data or [_sample("nli-train")]
    data = load_training_data(train_sources, max_rows=config.max_rows, **options)
    eval_sources = config.eval_data or ([] if config.train_data else [_sample("nli-dev")])
    if eval_sources:
        return data, load_training_data(eval_sources, **options)
    held_out = min(_HELD_OUT, len(data) // 10)
    if held_out < 2:
        raise LacosError(
            f"The training data have {len(data)} usable rows: at least 20 are needed, so that some can be held out "
            "to choose the best step. Add rows, or name eval_data."
        )
    parts = data.train_test_split(held_out, seed=config.seed)
    return parts["train"], parts["test"]


def _widget(data: Dataset) -> list[dict[str, Any]]:
    texts = [list(row.values()) for row in data.select(range(min(3, len(data))))]
    return [{"source_sentence": row[0], "sentences": row[1:]} for row in texts]


def _sample(name: str) -> str:
    from lacos_st.embedded import sample_path

    return str(sample_path(name))


def _arguments(
    config: LacosConfig, run: Path, rows: int, evaluator: BaseEvaluator | None
) -> SentenceTransformerTrainingArguments:
    on_cpu = not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    batch = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or max(1, int(rows / batch * config.epochs))
    every = config.eval_steps or max(1, -(-steps // _EVALUATIONS))
    bf16 = default_compute_dtype(device) == torch.bfloat16 if config.bf16 is None else config.bf16
    return SentenceTransformerTrainingArguments(
        output_dir=str(run / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,  # below 1: a share of all steps
        lr_scheduler_type=config.lr_scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        bf16=bf16,
        use_cpu=on_cpu,
        seed=config.seed,
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{evaluator.primary_metric}" if evaluator else "eval_loss",
        greater_is_better=evaluator.greater_is_better if evaluator else False,
        logging_steps=config.logging_steps,
        report_to=config.report_to or "none",
        dataloader_pin_memory=not on_cpu,
    )


class _Progress(TrainerCallback):
    """A progress bar with loss and pairs per second."""

    def __init__(self, pairs_per_step: int) -> None:
        self.pairs_per_step = pairs_per_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        self.started, self.first = time.time(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            speed = (state.global_step - self.first) * self.pairs_per_step / max(time.time() - self.started, 1e-9)
            logs["pairs_per_second"] = round(speed, 1)
            self.bar.set_postfix({"loss": f"{float(logs['loss']):.3f}", "pairs/s": f"{speed:.1f}"})
        elif logs and "eval_loss" in logs:
            self.bar.write(f"step {state.global_step}: held-out loss {float(logs['eval_loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class _StopAndSave(TrainerCallback):
    def __init__(self, interrupted: threading.Event) -> None:
        self.interrupted = interrupted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def _checkpoint_on_interrupt(trainer: SentenceTransformerTrainer) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a checkpoint and an orderly stop; a second one stops at once."""
    interrupted = threading.Event()
    trainer.add_callback(_StopAndSave(interrupted))
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(*_: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        print("\nInterrupted: writing a checkpoint after this step. Ctrl-C again stops at once.", flush=True)
        interrupted.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


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
