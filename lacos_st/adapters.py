"""LoRA as LACoS keeps it (arXiv 2106.09685): two matrices a layer over a frozen base, W + (alpha / rank) B A.

Checkpoints, merging and the fast path carry exactly that. PEFT's `LoraConfig` can ask for much more; what is not known
to end in those two matrices is refused, and so is what a later PEFT adds.
"""

from __future__ import annotations

from dataclasses import fields

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from lacos_st.errors import LacosError

LORA_TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

# Settings of `LoraConfig` that decide where the matrices are, how large they are and how they begin; all others must
# have their default.
_FREE = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config",
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip
_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of `init_lora_weights`: the base stays as it is


def new_lora(
    rank: int, alpha: int, dropout: float, targets: tuple[str, ...], name: str, taken: list[str]
) -> LoraConfig:
    """The configuration of a new adapter; see `LacosTransformer.add_lora`."""
    unknown = sorted(set(targets) - set(LORA_TARGETS))
    if unknown or not targets:
        raise LacosError(f"LoRA targets {unknown or list(targets)} are not in BLOOM: choose from {list(LORA_TARGETS)}.")
    if name in taken or "." in name:
        why = "has a dot" if "." in name else "exists already"
        raise LacosError(f"An adapter's name {name!r} {why}: choose another name.")
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none")


def check_plain_lora(config: PeftConfig, name: str) -> None:
    """Refuse adapters that checkpoints, merging and the fast path would carry in part only.

    Args:
        config: The adapter's configuration.
        name: The adapter.

    Raises:
        LacosError: No LoRA, or LoRA that is more than its two matrices a layer.
    """
    if type(config) is not LoraConfig:
        raise LacosError(
            f"The adapter {name!r} is {type(config).__name__}, and LACoS keeps plain LoRA: use LoraConfig."
        )
    plain = LoraConfig()
    found = [
        field.name
        for field in fields(LoraConfig)
        if field.name not in _FREE and getattr(config, field.name) != getattr(plain, field.name)
    ]
    if config.init_lora_weights not in _STARTS and not changes_base(config):
        found.append(f"init_lora_weights={config.init_lora_weights!r}")
    if found:
        what = f"LoRA with {', '.join(found)}"
        raise LacosError(f"The adapter {name!r} is {what}, and LACoS keeps plain LoRA: leave these settings out.")


def changes_base(config: PeftConfig) -> bool:
    """Whether an adapter began as a part of the base and took it away there (OLoRA, PiSSA)."""
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and (start == "olora" or start.startswith("pissa"))


def set_trainable_(model: nn.Module, name: str) -> None:
    """Let an adapter train; a loaded one is frozen."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(name)
