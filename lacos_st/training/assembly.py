"""What a recipe means: a `LacosConfig` -> model, data, loss and the Trainer's arguments.

Everything here is pure assembly: nothing trains, nothing is written. `training.py` runs what comes out of it.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers, MultiDatasetBatchSamplers

from lacos_st.config import LacosConfig
from lacos_st.data.held_out import hold_out, pairs_in_both
from lacos_st.data.load import load_training_data, load_training_sources
from lacos_st.decoder.quantization import default_compute_dtype
from lacos_st.decoder.walk import ALL_LINEAR
from lacos_st.embedded.names import own_settings, samples
from lacos_st.errors import LacosError
from lacos_st.model.adapters import possible_targets
from lacos_st.model.frozen import base_dtype
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.training.losses import CachedMaskedMultipleNegativesRankingLoss, MaskedMultipleNegativesRankingLoss
from lacos_st.training.processes import SharedBatches

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from sentence_transformers.base.evaluation import BaseEvaluator

logger = logging.getLogger(__name__)

TRAINING_LENGTH = 128  # tokens kept of a text where neither recipe nor base says
RANK = 16  # of an adapter where neither recipe nor base says
_EVALUATIONS = 10  # evaluations and checkpoints in a run, unless eval_steps says otherwise


def build_model(config: LacosConfig) -> LacosSentenceTransformer:
    """The base with an adapter that trains: a new one, or the one that the base was saved with.

    Args:
        config: The recipe.

    Returns:
        The model, as the base was saved where the recipe says nothing.

    Raises:
        LacosError: There is no such base, or settings contradict each other.
    """
    asked = {name: getattr(config, name) for name in ("template", "attention", "max_seq_length")}
    model = LacosSentenceTransformer(
        config.base,
        revision=config.revision,
        pooling=config.pooling or "weightedmean",
        transformer_options={
            "quantization": config.quantization,
            "compute_form": config.compute_form,
            "training_form": config.training_form,
            **{name: value for name, value in asked.items() if value is not None},  # else as the base was saved
        },
    )
    if model.is_plain_checkpoint and config.max_seq_length is None:
        model.max_seq_length = TRAINING_LENGTH
    if config.pooling not in (None, model.pooling.pooling_mode):
        place = list(model).index(model.pooling)
        model[place] = LacosPooling(model.pooling.embedding_dimension, config.pooling)
    if model.transformer.adapter_names:
        model.transformer.set_trainable()
        kept = {k: value for k, value in adapter_settings(model).items() if getattr(config, k) not in (None, [], value)}
        if kept:
            warnings.warn(
                f"The base has an adapter, and that one is trained on, with its own {kept}. To start a new one, merge "
                "it first (lacos-st merge).",
                stacklevel=3,
            )
    else:
        rank = rank_of(config)
        model.add_lora(rank, config.lora_alpha or 2 * rank, config.lora_dropout, targets_of(config))
    return model


def rank_of(config: LacosConfig) -> int:
    """Rank of a new adapter: the recipe's, else what suits the embedded base, else 16."""
    return config.lora_rank or int(own_settings(config.base).get("lora_rank", RANK))


def targets_of(config: LacosConfig) -> list[str]:
    """Layers of a new adapter: the recipe's, else what suits the embedded base, else all linear ones."""
    return config.lora_targets or list(own_settings(config.base).get("lora_targets", [ALL_LINEAR]))


def adapter_settings(model: LacosSentenceTransformer) -> dict[str, Any]:
    """The recipe's settings of the adapter as it is.

    Args:
        model: A model with an adapter.

    Returns:
        "lora_rank", "lora_alpha", "lora_dropout", "lora_targets" -> value.
    """
    lora = model.transformer.model.peft_config[model.transformer.adapter_names[0]]
    targets, order = lora.target_modules, possible_targets(model.transformer.model)
    ends = {name.rpartition(".")[2] for name in targets}  # "all-linear" became their whole names
    return {
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_targets": [targets] if isinstance(targets, str) else sorted(ends, key=order.index),
    }


def build_data(config: LacosConfig) -> tuple[DatasetDict, Dataset]:
    """Rows to train on, and held-out rows that choose the best step.

    Args:
        config: The recipe. Its `columns` and `min_score` are for `train_data`; `eval_data` without these columns are
            read by their names, and need no scores.

    Returns:
        (training by source: the Trainer draws each batch from one, held-out).

    Raises:
        LacosError: Data that cannot be used, named with file and line, or too little of it.
    """
    options: dict[str, Any] = {
        "on_bad_row": config.on_bad_row,
        "columns": config.columns or None,
        "min_score": config.min_score,
        "seed": config.seed,
    }
    data = load_training_sources(config.train_data or samples("samples"), max_rows=config.max_rows, **options)
    eval_sources = config.eval_data or ([] if config.train_data else samples("held_out"))
    if eval_sources:
        held = load_training_data(eval_sources, if_present=True, **options)
        if len(held) < 2:
            raise LacosError(
                f"eval_data ({', '.join(eval_sources)}) has one row: its loss is always 0, and no step can be chosen "
                "by it. Give at least 2 rows, better 20, or leave it out (--eval-data): a tenth is held out then."
            )
        if shared := pairs_in_both(data, held):
            logger.warning(
                "%d of the %d rows of eval_data are training rows too: what is measured on them tells how well they "
                "were learnt by heart. Take other rows, or leave it out (--eval-data): a tenth is held out then.",
                shared, len(held),
            )  # fmt: skip
    else:
        data, held = hold_out(data, config.seed)
    for name, part in data.items():
        if len(data) > 1 and len(part) < config.batch_size:
            logger.warning(
                "%s has %d rows: not a batch of %d, and each batch is of one source. Write small files of one kind "
                "into one.", name, len(part), config.batch_size,
            )  # fmt: skip
    return data, held


def build_loss(
    config: LacosConfig, model: LacosSentenceTransformer, mini_batch: int | None = None, gather: bool = False
) -> torch.nn.Module:
    """The contrastive objective that a recipe describes.

    Args:
        config: The recipe.
        model: The model to train.
        mini_batch: Rows to embed at a time. Default: all of a batch.
        gather: Contrast with the rows of all processes.

    Returns:
        A plain loss, or its cached twin for mini-batches.
    """
    options: dict[str, Any] = {
        "scale": config.scale,
        "mask_duplicates": config.mask_duplicates,
        "mask_margin": config.mask_margin,
        "gather_across_devices": gather,
    }
    if config.symmetric_loss:
        options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    if mini_batch is not None:
        return CachedMaskedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch, **options)
    return MaskedMultipleNegativesRankingLoss(model, **options)


def even_batches(held: Dataset, batch_size: int, processes: int = 1) -> tuple[Dataset, int]:
    """Held-out rows in batches of one size, so that each row meets as many negatives, also among several processes.

    Otherwise accelerate would fill the last batch of several processes with rows of the first, and another number of
    processes would find another loss.

    Args:
        held: The rows.
        batch_size: Rows in a batch, at most.
        processes: That share a batch; each gets as many rows.

    Returns:
        (the rows less what is left over, rows in a batch).
    """
    batches = -(-len(held) // batch_size)
    size = max(1, len(held) // batches // processes) * processes
    return held.select(range(min(len(held), size * batches))), size


def build_arguments(
    config: LacosConfig,
    run: Path,
    data: DatasetDict,
    evaluator: BaseEvaluator | None,
    model: LacosSentenceTransformer,
    processes: int = 1,
    held_out: int | None = None,
) -> SentenceTransformerTrainingArguments:
    """The Trainer's arguments.

    Args:
        config: The recipe.
        run: The run's directory; checkpoints go below it.
        data: To train on.
        evaluator: What chooses the best step; None: the held-out loss. Its primary metric is known.
        model: The model to train.
        processes: That share a batch.
        held_out: Rows in a batch of held-out ones, of `even_batches`. Default: as in training.

    Returns:
        The arguments.
    """
    on_cpu = not torch.cuda.is_available()
    batches = sum(-(-rows // config.batch_size) for rows in data.num_rows.values())
    steps = config.max_steps or max(1, int(batches / config.gradient_accumulation_steps * config.epochs))
    every = config.eval_steps or max(1, -(-steps // _EVALUATIONS))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(run / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,  # of all processes: `SharedBatches` cuts it
        per_device_eval_batch_size=(held_out or config.batch_size) // processes,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,  # below 1: a share of all steps
        lr_scheduler_type=config.lr_scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        bf16=_autocasts(config, model) if config.bf16 is None else config.bf16,
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,  # else the process' own, by which each would draw other held-out rows
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        multi_dataset_batch_sampler=SharedBatches if processes > 1 else MultiDatasetBatchSamplers.PROPORTIONAL,
        ddp_find_unused_parameters=False,  # a step uses all of an adapter
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{evaluator.primary_metric}" if evaluator else "eval_loss",
        greater_is_better=evaluator.greater_is_better if evaluator else False,
        logging_steps=config.logging_steps,
        disable_tqdm=False,  # by default a quiet `transformers`, as the command line has it, leaves progress out too
        report_to=config.report_to or "none",
        restore_callback_states_from_checkpoint=True,  # early stopping counts on
        dataloader_pin_memory=not on_cpu,
    )
    arguments.dataloader_drop_last = False  # set for several processes, whose last batches might differ: ours do not
    return arguments


def memory_options(config: LacosConfig, training: bool = True) -> dict[str, Any]:
    """What `memory.predict` has to know of a recipe, beside base, batch and device.

    Args:
        config: The recipe.
        training: Of training, or of encoding.

    Returns:
        Its keyword arguments, every text as long as the recipe allows.
    """
    return {
        "length": config.max_seq_length or TRAINING_LENGTH,
        "rank": rank_of(config),
        "targets": targets_of(config),
        "dropout": config.lora_dropout,
        "optimizer": config.optimizer,
        "gradient_checkpointing": config.gradient_checkpointing,
        "quantization": config.quantization,
        "compute_form": config.training_form if training else config.compute_form,
    }


def _autocasts(config: LacosConfig, model: LacosSentenceTransformer) -> bool:
    """Whether bf16 autocast pays: an 8-bit model computes in bf16 already, or full precision is faster with it."""
    if config.quantization == "int8":
        return base_dtype(model.transformer.model) == torch.bfloat16
    return default_compute_dtype(model.device, "w8a16") == torch.bfloat16
