"""`LacosConfig`: one dataclass is the Python arguments, the CLI's flags and the YAML recipe.

Every field has a type, a default and a help text in its metadata; `cli/parser.py` makes a flag of each, `from_yaml` and
`to_yaml` go round exactly, and `__post_init__` checks values where they enter. Where a default comes from an
experiment, `docs/ablations.md` holds it.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from lacos_st.errors import LacosError, shortened, shown
from lacos_st.files import at_home, atomic


def _option(default: Any, explanation: str) -> Any:
    metadata = {"help": explanation}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class LacosConfig:
    """All that a training run is made of.

    Raises:
        LacosError: A value of the wrong type or out of range, named with its field.

    Example:
        >>> LacosConfig(lora_rank=8).lora_rank
        8
        >>> LacosConfig(lora_rank=0)
        Traceback (most recent call last):
        ...
        lacos_st.errors.LacosError: lora_rank=0 must be at least 1.
    """

    # -- base
    base: str = _option("bloom-mini", "decoder: embedded name, local directory, GGUF file, Hub name, or gemma3-270m")
    revision: str | None = _option(None, "commit, tag or branch of a base on the Hub")
    quantization: Literal["int8", "none"] = _option("int8", "8-bit base weights, or none for comparison")
    compute_form: Literal["auto", "w8a8", "w8a16", "bnb"] = _option("auto", "8-bit compute when encoding")
    training_form: Literal["auto", "w8a8", "w8a16", "bnb"] = _option("auto", "8-bit compute while training")
    attention: Literal["causal", "bidirectional", "symmetric"] | None = _option(
        None,
        "causal as decoders are trained, or both sides (symmetric: BLOOM, not in stock); none: as the base says",
    )
    # -- embedding
    pooling: Literal["weightedmean", "lasttoken", "mean"] | None = _option(
        None, "how tokens become a sentence; none: as the base says, weightedmean where it says nothing"
    )
    template: str | None = _option(
        None, "text put around every input, with {text} for it; none: as the base was saved, else an end token is added"
    )
    max_seq_length: int | None = _option(
        None, "tokens kept of each text, here and in the saved model; none: as the base was saved, else 128"
    )
    # -- adapter
    lora_rank: int | None = _option(
        None, "inner dimension of the LoRA update; none: 16, or what suits the embedded base"
    )
    lora_alpha: int | None = _option(None, "the update is scaled by alpha / rank; none: twice the rank")
    lora_dropout: float = _option(0.05, "dropout on the adapter's input; above 0 for unlabelled sentences")
    lora_targets: list[str] = _option(
        [], "linear layers to adapt, by the ends of their names; none: all-linear, or what suits the embedded base"
    )
    # -- data
    train_data: list[str] = _option(
        [], "files or Hub data sets, each with an optional @weight; each batch is of one of them; none: the sample"
    )
    columns: list[str] = _option([], "columns in the order anchor positive [negative ...]; none: by their names")
    on_bad_row: Literal["error", "skip"] = _option("error", "what a row that cannot be read does")
    min_score: float | None = _option(None, "use scored pairs of at least this score; needed if there is a score")
    max_rows: int | None = _option(None, "use at most so many rows, of all data together")
    eval_data: list[str] = _option(
        [], "pairs or triplets that choose the best step, and are searched before and after; none: a tenth, at most 512"
    )
    # -- objective
    scale: float = _option(20.0, "similarities are multiplied by this (1 / temperature)")
    mask_duplicates: bool = _option(True, "never use a text's own paraphrase as its negative")
    mask_margin: float | None = _option(None, "mask candidates that score above the positive by this much")
    symmetric_loss: bool = _option(False, "contrast positives against anchors as well")
    mini_batch_size: int | None = _option(None, "gradient caching: embed so many texts at a time, for large batches")
    auto_batch_size: bool = _option(
        False, "choose the mini-batch by the memory that is free, and halve it where it does not suffice"
    )
    # -- optimisation
    epochs: float = _option(1.0, "passes over the data")
    max_steps: int | None = _option(None, "stop after so many optimiser steps, whatever the epochs")
    batch_size: int = _option(64, "pairs or triplets in a batch, on each device")
    gradient_accumulation_steps: int = _option(1, "batches to a step")
    learning_rate: float = _option(2e-4, "peak learning rate of the adapter")
    warmup_ratio: float = _option(0.1, "share of the steps with a rising learning rate")
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = _option("linear", "learning rate's course")
    weight_decay: float = _option(0.0, "AdamW's weight decay")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm")
    optimizer: Literal["adamw_8bit", "paged_adamw_8bit", "adamw_torch"] = _option(
        "adamw_8bit", "8-bit Adam; paged moves its state to host memory when a GPU is full"
    )
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, about a third slower")
    bf16: bool | None = _option(None, "bf16 autocast of what is not 8-bit; none: where the device does it well")
    seed: int = _option(42, "seed of everything random")
    # -- progress
    output: str = _option("lacos-bloom", "directory of the trained model")
    eval_steps: int | None = _option(None, "evaluate and checkpoint every so many steps; none: ten times a run")
    early_stopping_patience: int | None = _option(None, "stop after so many evaluations without improvement")
    logging_steps: int = _option(10, "report loss and speed every so many steps")
    report_to: list[str] = _option([], "where the Trainer reports to: tensorboard, wandb, ...")
    overwrite: bool = _option(False, "replace a finished model or a run of another recipe; a run of the same goes on")

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            setattr(self, item.name, _coerce(item.name, getattr(self, item.name), hints[item.name]))
        for name in ("base", "train_data", "eval_data", "output"):
            setattr(self, name, at_home(getattr(self, name)))
        for name, value in vars(self).items():
            least, most = _AT_LEAST.get(name, -_LARGEST), _AT_MOST.get(name, _LARGEST)
            if isinstance(value, int | float) and not least <= value <= most:
                limit = f"at least {least}" if value < least else f"at most {most}"
                raise LacosError(f"{name}={value} must be {limit}.")
        for name in ("scale", "epochs", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise LacosError(f"{name}={getattr(self, name)} must be above 0.")
        for name in ("lora_dropout", "warmup_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise LacosError(f"{name}={getattr(self, name)} must be at least 0 and below 1.")
        if self.template is not None and self.template.count("{text}") != 1:
            raise LacosError(f"template={shown(self.template)} must contain {{text}} exactly once.")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the recipe") -> Self:
        """Make a config of a mapping.

        Raises:
            LacosError: An unknown name, with the nearest known one.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(str(name), known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise LacosError(f"{source} has the unknown setting {shown(name)}.{hint} Known: {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a recipe; `overrides` win over it.

        Raises:
            LacosError: The file is missing, no YAML mapping, or has unknown or invalid settings.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LacosError(f"The recipe {str(path)!r} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LacosError(f"The recipe {str(path)!r} is no valid YAML: {shortened(str(error), 1000)}") from error
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise LacosError(f"The recipe {str(path)!r} must be a mapping of settings, not a {type(values).__name__}.")
        return cls.from_dict({**values, **overrides}, f"The recipe {str(path)!r}")

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The recipe that `from_yaml` reads back to an equal config; written to `path` if one is given."""
        # ASCII only: PyYAML writes U+0085 and its like plainly otherwise, and reads them back as line breaks.
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return text


_LARGEST = 2**31 - 1  # more of anything is a slip, and what counts it may hold no more
_AT_MOST = {"seed": 2**32 - 1, "lora_rank": 2**14}  # NumPy's largest; wider than any decoder
_AT_LEAST = {
    "max_seq_length": 2,
    "lora_rank": 1,
    "lora_alpha": 1,
    "max_rows": 1,
    "mask_margin": 0,
    "mini_batch_size": 1,
    "max_steps": 1,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "eval_steps": 1,
    "early_stopping_patience": 1,
    "logging_steps": 1,
    "seed": 0,
}


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """Check a value against its field's type; numbers may come as strings (YAML reads 5e-4 as one)."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise LacosError(f"{name}={shown(value)} is not one of {', '.join(map(str, typing.get_args(kind)))}.")
        return value
    if typing.get_origin(kind) is list:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise LacosError(f"{name}={shown(value)} must be a list.")
        return [str(item) for item in value]
    if kind is bool:
        if not isinstance(value, bool):
            raise LacosError(f"{name}={shown(value)} must be true or false.")
        return value
    if kind in (int, float):
        try:
            number = float(value)
            if isinstance(value, bool) or not math.isfinite(number) or (kind is int and number != int(number)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise LacosError(
                f"{name}={shown(value)} must be {'a whole' if kind is int else 'a finite'} number."
            ) from None
        return kind(number)
    if not isinstance(value, str):
        raise LacosError(f"{name}={shown(value)} must be a text.")
    return value
