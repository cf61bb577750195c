"""`LacosTransformer`: sentence-transformers' input module over an 8-bit decoder with LoRA adapters.

Data flow: texts -> (template, tokenizer) -> padded ids (batch, tokens) -> the decoder (packs them, so padding costs
nothing) -> token embeddings (batch, tokens, hidden). It stays ST's own `Transformer`; this file adds what an
8-bit base needs and the stock module gets wrong:

- the base is quantised while it is loaded (bitsandbytes int8, the embedding table too) and frozen;
- padding on the right (ALiBi positions, gradient caching and fp16 are safe there), a real `max_seq_length`;
- a *template* around every text (`template.py`), which stock ST applies too;
- state that survives: a state dict without the frozen base loads (checkpoints have none), never casts
  floats into int8 weights, and several adapters are saved and loaded by name.

What lies on disk: `save` and `artifact.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
from peft import PeftModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util.decorators import transformer_kwargs_decorator
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lacos_st.decoder.allocator import settle_heap
from lacos_st.decoder.attention import Mode, attention_mode, set_attention_mode_
from lacos_st.decoder.fast_path import accelerate_, form_for
from lacos_st.decoder.quantization import as_dtype, default_compute_dtype, is_quantized
from lacos_st.errors import LacosError
from lacos_st.model.adapters import WithAdapters, changes_base, check_plain_lora
from lacos_st.model.artifact import RECORD, UNNAMED, describe_base, is_hub_name, write_adapters, write_base
from lacos_st.model.frozen import base_dtype, freeze_, is_trained, keep_frozen_
from lacos_st.model.opening import check_transformer, load_adapter, naming_tokenizer
from lacos_st.model.preprocessing import PreprocessingTransformer
from lacos_st.model.schemas import (
    check_backend,
    check_device_map,
    check_quantization,
    check_record,
    check_settings,
    checking,
)
from lacos_st.model.template import apply_template, check_room, default_template, own_template

Quantization = Literal["int8", "none"]

DEFAULT_MAX_SEQ_LENGTH = 512  # tokens; most decoders can read thousands, and few sentences need them
_FOREIGN = (
    "Only a LacosSentenceTransformer(modules=[LacosTransformer(...), ...]) trains and saves a LacosTransformer. What a "
    "plain SentenceTransformer, a SparseEncoder, a MultiVectorEncoder or a Router saves of it could not be loaded."
)


class LacosTransformer(WithAdapters, PreprocessingTransformer):
    """ST's `Transformer` over a decoder in 8 bits, ready for LoRA.

    Args:
        model_name_or_path: A decoder (BLOOM, Llama, Qwen, Gemma, ...): Hub name or local directory; full precision or
            saved in 8 bits.
        quantization: "int8" quantises linear layers and the embedding table on load and freezes the base; "none"
            keeps it as stored, for comparison.
        compute_form: How 8-bit layers compute when encoding ("auto", "w8a8", "w8a16", "bnb"); see `quantization.py`.
        training_form: The same while training.
        template: Text put around every input, with `{text}` once, for example
            `'This sentence : "{text}" means in one word:"'` (PromptEOL, arXiv 2307.16645). Default: the end token
            follows the text. "": what the tokenizer adds by itself. A directory that was saved keeps its own.
        attention: What a token sees: "causal" as decoders are trained, "bidirectional" (both sides; stock software
            reads it) or, in BLOOM, "symmetric" (both sides, a bias of `-|i - j|`). Default: as the checkpoint says.
        max_seq_length: Tokens kept of each input, template included. Default: 512, or less where the tokenizer says so.
        adapters: Names of adapters stored beside the base, the active one first (from `lacos.json`).
        **kwargs: As for ST's `Transformer` (`model_kwargs`, `processor_kwargs`, `config_kwargs`, ...).

    Raises:
        LacosError: The checkpoint is no decoder, or in 8 bits with `quantization="none"`, or none of its layers can be
            quantised, or the template leaves no room for text.
    """

    @transformer_kwargs_decorator  # type: ignore[untyped-decorator]  # older names of `processor_kwargs` and such
    def __init__(
        self,
        model_name_or_path: str,
        *,
        quantization: Quantization = "int8",
        compute_form: str = "auto",
        training_form: str = "auto",
        template: str | None = None,
        attention: Mode | None = None,
        max_seq_length: int | None = None,
        adapters: list[str] | None = None,
        base: dict[str, str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        check_backend(kwargs.get("backend", "torch"))
        if quantization not in ("int8", "none"):
            raise LacosError(f"quantization={quantization!r} is not known: use 'int8' or 'none'.")
        # Read by `_load_model`, which ST's constructor calls.
        self._load_options: dict[str, Any] = {
            "quantization": quantization,
            "compute_form": compute_form,
            "training_form": training_form,
            "attention": attention,
            "adapters": adapters or [],
        }
        kwargs["processor_kwargs"] = {"padding_side": "right", **(kwargs.get("processor_kwargs") or {})}
        with naming_tokenizer(self, model_name_or_path):
            super().__init__(model_name_or_path, **kwargs)
        self.quantization: Quantization = "int8" if is_quantized(self.model) else "none"
        self.compute_form = compute_form
        self.training_form = training_form
        self.attention: Mode = attention_mode(self.model.config)
        self.base_attention: Mode = self._load_options["base_attention"]
        commit = getattr(self.config, "_commit_hash", None)
        self.base = describe_base(model_name_or_path, base, commit, kwargs.get("config_kwargs"))
        self.hub_name: str | None = None  # of what is saved, where the model around this module knows it
        self.saved_by_lacos: bool | None = None  # by the model around this module; None: there is none yet
        self.save_base = not self.is_base_on_hub
        # The rows of the table whose base lies where `base` says; None: in memory alone, for it has changed.
        lies_somewhere = "path" in self.base or self.is_base_on_hub
        self._stored_rows: int | None = self.model.config.vocab_size if lies_somewhere else None
        stored = self.tokenizer.init_kwargs.get("lacos_template")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        usual = default_template if template is None else own_template
        self.template: str = template or stored or usual(self.tokenizer)
        apply_template(self.tokenizer, self.template)
        length = self.max_seq_length if max_seq_length is None else max_seq_length
        if max_seq_length is None and "model_max_length" not in kwargs["processor_kwargs"]:
            # what was said is how much the model could read at most
            length = min(DEFAULT_MAX_SEQ_LENGTH, length or DEFAULT_MAX_SEQ_LENGTH)
        self.max_seq_length = length
        # Modules after this one that never train, as `lacos.json` says; None: it does not say, and none does.
        self.frozen_modules: list[str] | None = None
        keep_frozen_(self)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As torch's, floating ones first: ST casts the modules after this one to the dtype of the first."""
        return iter(sorted(super().parameters(recurse), key=lambda parameter: not parameter.is_floating_point()))

    @property
    def is_base_frozen(self) -> bool:
        """Whether the base is no part of what trains: it is in 8 bits, or has adapters and is frozen under them."""
        parameters = self.model.named_parameters()
        trains = any(value.requires_grad for key, value in parameters if not is_trained(key))
        return self.quantization == "int8" or (bool(self.adapter_names) and not trains)

    @property
    def is_base_on_hub(self) -> bool:
        """Whether the base was loaded from the Hub, where others find it."""
        return "path" not in self.base and is_hub_name(self.base["name"])

    @property
    def is_base_stored(self) -> bool:
        """Whether the base, as it is, lies in a directory or on the Hub, so that an adapter can refer to it."""
        changed = any(changes_base(self.model.peft_config[name]) for name in self.adapter_names)
        return self._stored_rows == self.model.config.vocab_size and not changed

    def check_others_find_base(self) -> None:
        """Refuse to part an adapter from a base that nobody else has.

        Raises:
            LacosError: The base lies in a local directory, or has changed since it was loaded.
        """
        if not (self.is_base_stored and self.is_base_on_hub):
            raise LacosError(
                f"self_contained=False would upload an adapter alone, and its base {self.base['name']!r} "
                f"{'is not on the Hub' if self.is_base_stored else 'has changed since it was loaded'}: nobody else "
                "could load it. Leave self_contained out, and the base is uploaded with it."
            )

    @property
    def max_seq_length(self) -> int | None:
        """Tokens kept of each input, template included."""
        return super().max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if value is not None and hasattr(self, "template"):  # ST's constructor sets it before there is one
            check_room(self.tokenizer, self.template, value)
        Transformer.max_seq_length.__set__(self, value)

    def on_model_ready(self, model: Any) -> None:
        """ST's hook: remember whether the model around this module knows how to save it."""
        self.saved_by_lacos = hasattr(model, "transformer")

    def train(self, mode: bool = True) -> Self:
        """As torch's; from here on a base that trains is no longer the stored one.

        Raises:
            LacosError: What would be learnt could not be saved: the model around this module is another's, or an
                adapter is no plain LoRA.
        """
        if mode:
            if self.saved_by_lacos is False:
                raise LacosError(_FOREIGN)
            for name in self.adapter_names:
                check_plain_lora(self.model.peft_config[name], name)
            if not self.is_base_frozen:
                self._stored_rows = None
        return super().train(mode)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse `module.auto_model = get_peft_model(...)`: it would stand beside the real model."""
        if name == "auto_model" or (name == "model" and isinstance(value, PeftModel)):
            raise AttributeError(
                f"Assigning a {type(value).__name__} to {name!r} would lose it on saving: call add_lora(), or "
                "add_adapter(LoraConfig(...)), which put the adapter into the model that is there."
            )
        super().__setattr__(name, value)

    # -- loading -----------------------------------------------------------------------------------------------

    def _load_config(
        self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]
    ) -> tuple[PretrainedConfig, bool]:
        check_transformer(model_name_or_path, self._load_options["adapters"], config_kwargs)
        return super()._load_config(model_name_or_path, backend, config_kwargs)

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: str,
        config: PretrainedConfig,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> PreTrainedModel:
        options = self._load_options
        check_quantization(model_kwargs.get("quantization_config"), "model_kwargs")
        stored_in_8_bits = options["stored_in_8_bits"] = getattr(config, "quantization_config", None) is not None
        quantized = options["quantization"] == "int8"
        if stored_in_8_bits and not quantized:
            raise LacosError(
                f"quantization='none' asks for full precision, and {model_name_or_path!r} is stored in 8 bits: what "
                "rounding took away is not there. Load it in int8, or name the checkpoint it was made from."
            )
        if stored_in_8_bits:
            model_kwargs.pop("quantization_config", None)
        elif quantized:
            model_kwargs.setdefault("quantization_config", BitsAndBytesConfig(load_in_8bit=True))
        asked = as_dtype(model_kwargs.pop("torch_dtype", None) or model_kwargs.get("dtype") or config.dtype)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not quantized and device.type == "cpu" and asked == torch.float16:
            asked = torch.float32
        model_kwargs["dtype"] = "auto" if quantized else asked  # quantise what is stored, not what bf16 leaves of it
        names = options["adapters"]
        hub = {key: model_kwargs.get(key) for key in ("cache_dir", "token", "revision", "local_files_only")}
        model_kwargs.pop("adapter_kwargs", None)
        if names and is_peft_model:
            model_kwargs["adapter_name"] = names[0]
        check_device_map(model_kwargs.get("device_map"))
        model = super()._load_model(
            model_name_or_path, transformer_task, config, backend, is_peft_model, **model_kwargs
        )
        if quantized and not is_quantized(model):
            raise LacosError(
                f"{model_name_or_path!r} is a {config.model_type!r} model, of which transformers' bitsandbytes "
                "quantises no layer: load it with transformer_options={'quantization': 'none'} (--quantization none)."
            )
        if quantized:
            settle_heap()  # the layers' 16-bit weights lie freed in the heap; the table comes next
            # What the device does well; the caller's word counts where several dtypes are fast.
            chosen = default_compute_dtype(device, form_for(model, options["compute_form"], device, training=False))
            freeze_(model, asked if device.type == "cuda" and asked != torch.float32 else chosen)
        options["base_attention"] = attention_mode(config)
        set_attention_mode_(model.config, options["attention"] or options["base_attention"])
        model = accelerate_(model, options["compute_form"], options["training_form"])
        for name in names[1:] if is_peft_model else names:  # from_pretrained has taken the one in the root
            folder = name if is_peft_model else "adapter" if name == names[0] else f"adapter/{name}"
            load_adapter(model, model_name_or_path, name, {**hub, "subfolder": folder})
        if names:
            model.set_adapter(names[0])
            model.requires_grad_(False)
        settle_heap()
        return model.eval()

    @classmethod
    def load_config(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ST's; what a directory may not say is refused."""
        with checking(Path(model_name_or_path, cls.config_file_name)):
            config: dict[str, Any] = super().load_config(model_name_or_path, *args, **kwargs)
        check_settings(config, model_name_or_path)
        return config

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:
        """Load from a saved directory or the Hub; as ST's, and reads `lacos.json` where there is one."""
        places = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        record = super(Transformer, cls).load_config(
            model_name_or_path,
            config_filename=RECORD,
            **{key: kwargs[key] for key in places if key in kwargs},
        )
        check_record(record, model_name_or_path)
        defaults = kwargs.pop("init_defaults", None) or {}
        frozen = record.pop("frozen_modules", None)
        record.pop("lexical", None)
        if not record:  # saved by stock classes
            record["template"] = ""
        loaded = super().load(model_name_or_path, init_defaults={**record, **defaults}, **kwargs)
        loaded.frozen_modules = frozen
        return loaded

    def _can_flatten_inputs(self) -> bool:
        if not self.unpad_inputs:
            return False
        from transformers import DataCollatorWithFlattening

        self.data_collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
        self._flatten_position_offset = 0
        return True

    # -- saving ------------------------------------------------------------------------------------------------

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write base (if `save_base`), adapters, tokenizer and settings, as safetensors only.

        Self-contained: the 8-bit base in the root, the active adapter in `adapter/`, others in `adapter/<name>/`.
        By reference: the active adapter in the root with its base's name, others in `<name>/`.

        Raises:
            LacosError: `safe_serialization=False`, nothing to save (no adapter and no base), an adapter that is no
                plain LoRA, or several active at once.
        """
        if not self.saved_by_lacos:
            raise LacosError(_FOREIGN)
        if not safe_serialization:
            raise LacosError("safe_serialization=False would write pickle files: LACoS saves safetensors only.")
        root = Path(output_path)
        names = self.adapter_names
        for name in names:
            check_plain_lora(self.model.peft_config[name], name)
        if names and len(self.model.active_adapters()) > 1:
            raise LacosError(
                f"The adapters {', '.join(self.model.active_adapters())} are active at once, and a saved model begins "
                "with one: set_adapter() one of them."
            )
        if not names and not self.save_base:
            raise LacosError(
                f"There is no adapter to save, and the base stays at {self.base['name']!r}: add_lora() first."
            )
        if self.save_base:
            write_base(self.model, root)
            write_adapters(root / "adapter", self.model, names, self.hub_name or UNNAMED, None)
        else:
            write_adapters(root, self.model, names, self.base.get("path") or self.base["name"], self.base["revision"])
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)
        record = {
            "quantization": self.quantization,
            "compute_form": self.compute_form,
            "training_form": self.training_form,
            "attention": self.attention,
            "template": self.template,
            "adapters": names,
            "frozen_modules": self.frozen_modules or [],
            "base": {key: value for key, value in self.base.items() if key != "path" or not self.save_base},
        }
        (root / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def get_config_dict(self) -> dict[str, Any]:
        """ST's settings, with what stock ST needs to load the same 8-bit model with its adapter."""
        config = super().get_config_dict()
        model_kwargs: dict[str, Any] = {}
        if self.adapter_names and self.save_base:
            model_kwargs["adapter_kwargs"] = {"subfolder": "adapter"}
        if not self.save_base:
            model_kwargs["dtype"] = str(base_dtype(self.model)).removeprefix("torch.")
            if self.quantization == "int8" and not self._load_options["stored_in_8_bits"]:
                model_kwargs["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        if model_kwargs:
            config["model_kwargs"] = model_kwargs
        config["processor_kwargs"] = {"padding_side": "right", "model_max_length": self.max_seq_length}
        return config
