"""LoRA as LACoS keeps it (arXiv 2106.09685): two matrices a layer over a frozen base, W + (alpha / rank) B A.

Checkpoints, merging and the fast path carry exactly that. PEFT's `LoraConfig` can ask for much more; what is not known
to end in those two matrices is refused, and so is what a later PEFT adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lacos_st.decoder.lora import fold_lora_
from lacos_st.decoder.walk import ALL_LINEAR, check_targets, linear_layers
from lacos_st.errors import LacosError

# Settings of `LoraConfig` that decide where the matrices are, how large they are and how they begin; all others must
# have their default.
_FREE = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config",
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip
_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of `init_lora_weights`: the base stays as it is


def is_adapter_name(name: object) -> bool:
    """Whether an adapter of this name can be injected, saved in a folder of that name and loaded."""
    return (
        isinstance(name, str)
        and bool(name.strip())
        and len(name.encode()) <= 255  # of a folder's name
        and not set(name) & set("./\\\0")
        and not hasattr(nn.ModuleDict(), name)  # PEFT keeps adapters in one, beside its own methods
    )


def check_adapter_name(name: object) -> None:
    """Refuse a name of an adapter that PEFT or a file system cannot carry.

    Raises:
        LacosError: It is one.
    """
    if not is_adapter_name(name):
        raise LacosError(
            f"An adapter cannot be named {name!r:.80}: it lies in a torch.nn.ModuleDict, and in a folder of its "
            "name. Choose a short text without dots and slashes that is no method of that, for example 'french'."
        )


def check_plain_lora(config: PeftConfig, name: str) -> None:
    """Refuse adapters that checkpoints, merging and the fast path would carry in part only.

    Args:
        config: The adapter's configuration.
        name: The adapter.

    Raises:
        LacosError: No LoRA, or LoRA that is more than its two matrices a layer, or a name that cannot be saved.
    """
    check_adapter_name(name)
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


def matrices(model: nn.Module, name: str) -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names, taken from its layers: any part of a key can be an adapter's name."""
    state: dict[str, Tensor] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            state |= {f"{path}.{part}.weight": getattr(layer, part)[name].weight for part in _holders(layer, name, "")}
            state |= {f"{path}.{part}": getattr(layer, part)[name] for part in _holders(layer, name, "embedding_")}
    return state


def _holders(layer: LoraLayer, name: str, kind: str) -> list[str]:
    return [part for part in (f"lora_{kind}A", f"lora_{kind}B") if name in getattr(layer, part)]


def possible_targets(model: PreTrainedModel) -> list[str]:
    """Ends of the names of a decoder's linear layers, each once, in the order of the model."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name, _ in linear_layers(model)))


class WithAdapters:
    """What a `LacosTransformer` does with its adapters."""

    model: PreTrainedModel
    base: dict[str, str | None]
    save_base: bool
    _stored_rows: int | None

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters, the active one first; empty without adapters."""
        if not getattr(self.model, "_hf_peft_config_loaded", False):
            return []
        active = self.model.active_adapters()
        return [*active, *(name for name in self.model.peft_config if name not in active)]

    def add_lora(
        self,
        rank: int = 16,
        alpha: int = 32,
        dropout: float = 0.05,
        targets: Sequence[str] = (ALL_LINEAR,),
        name: str = "default",
    ) -> None:
        """Add a trainable LoRA adapter to the frozen base.

        Args:
            rank: Inner dimension r of the update B A.
            alpha: The update is scaled by alpha / rank.
            dropout: Dropout on the adapter's input while training; above 0 it is also what tells two copies of an
                unlabelled sentence apart.
            targets: Linear layers to adapt, by the ends of their names, for example "query_key_value" in BLOOM or
                "q_proj" in Llama; "all-linear" alone means all of them.
            name: The adapter's name.

        Raises:
            LacosError: A target that the base does not have, or a name that is in use or cannot be saved.
        """
        check_targets(targets, possible_targets(self.model))
        check_adapter_name(name)
        if name in self.adapter_names:
            raise LacosError(f"An adapter named {name!r} exists already: choose another name.")
        wanted = ALL_LINEAR if list(targets) == [ALL_LINEAR] else list(targets)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted, bias="none")
        self.model.add_adapter(config, name)

    def set_trainable(self) -> None:
        """Let the active adapter train (a loaded adapter is frozen).

        Raises:
            LacosError: There is no adapter.
        """
        if not self.adapter_names:
            raise LacosError("This model has no adapter to train: call add_lora() first.")
        active = self.adapter_names[0]
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter(active)
        self.model.peft_config[active].inference_mode = False

    def merge_adapter(self) -> None:
        """Fold the active adapter into the base: in float, then quantised again row by row, never added to int8.

        Raises:
            LacosError: There is no adapter, more than one, or one that is no plain LoRA.
        """
        if len(self.adapter_names) != 1:
            advice = ": delete_adapter() the others first." if self.adapter_names else "."
            raise LacosError(f"Merging takes one adapter, and this model has {self.adapter_names or 'none'}{advice}")
        name = self.adapter_names[0]
        check_plain_lora(self.model.peft_config[name], name)
        fold_lora_(self.model, name)
        del self.model.peft_config
        self.model._hf_peft_config_loaded = False
        self.mark_base("merged")

    def mark_base(self, how: str) -> None:
        """Say that the base is another than the one that was loaded: it lies nowhere yet, and its terms still hold.

        Args:
            how: What was done to it: "merged" or "trimmed", which its name ends in from now on.
        """
        name = f"{str(self.base['name']).rpartition('/')[2].removesuffix(f'-{how}')}-{how}"
        self.base = {key: value for key, value in self.base.items() if key != "path"} | {"name": name, "revision": None}
        self.save_base, self._stored_rows = True, None
