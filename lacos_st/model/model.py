"""`LacosSentenceTransformer`: a SentenceTransformer that assembles, saves, loads, swaps and merges 8-bit LoRA decoders.

It is ST's class with three differences.

- Names: `LacosSentenceTransformer("lacos-bloom")` is a local directory, else the embedded model, else a Hub name; a
  plain decoder checkpoint gets `LacosTransformer` and `LacosPooling`.
- Saving: a directory that stock `SentenceTransformer` loads without this package. `modules.json` names stock
  classes. The base lies there in 8 bits with the adapter beside it, or, for a base on the Hub, only the adapter.
  Everything is written beside the target first and then moved, so that no reader ever sees half a model.
- Checkpoints: in a directory that the Trainer names `checkpoint-<step>` all but a frozen base is written, and reloading
  one (best model, resume) reads none: the 8-bit one in memory is never touched.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, Self

import bitsandbytes as bnb
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import get_rank
from torch import nn

from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.decoder.threads import as_many_threads_as_serve
from lacos_st.errors import LacosError
from lacos_st.files import stage_for, write_json
from lacos_st.model.adapters import check_adapter_name
from lacos_st.model.artifact import check_others_can_load, is_checkpoint, is_hub_name
from lacos_st.model.card import complete, describe, fill_in
from lacos_st.model.dense import freeze_
from lacos_st.model.names import resolve
from lacos_st.model.opening import check_directory
from lacos_st.model.placing import disk_error, move_into
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.reload import read_checkpoint
from lacos_st.model.stock import OURS, STOCK, fullname, inexpressible, name_stock_classes, names_of
from lacos_st.model.transformer import LacosTransformer
from lacos_st.quiet import without

# Where sentence-transformers has had its modules: a saved model names them as its version did.
_PLACES = ("sentence_transformers.models", "sentence_transformers.sentence_transformer.modules")
logger = logging.getLogger(__name__)


class LacosSentenceTransformer(SentenceTransformer):
    """A SentenceTransformer over an 8-bit LoRA decoder. Everything ST's class does, it does.

    Loading a model sets two thresholds of glibc's allocator for the whole process (`decoder/allocator.py`): a small
    model encodes twice as fast. `MALLOC_TRIM_THRESHOLD_` or `MALLOC_MMAP_THRESHOLD_` in the environment turn that off.

    Args:
        model_name_or_path: A saved directory, an embedded model ("lacos-bloom", "bloom-mini"), a Hub name, or a
            plain decoder checkpoint, a GGUF file, or a name of `bases.BASES`. A local directory comes first.
        modules: Or the modules, as for ST: `[LacosTransformer(...), LacosPooling(...)]`.
        is_trainable: Let the loaded adapter train; by default it is frozen, for use. Modules after the transformer
            train if they did when the model was saved.
        pooling: Pooling mode for a plain checkpoint; a saved directory has its own. Default "weightedmean".
        transformer_options: Options of `LacosTransformer` (`quantization`, `compute_form`, `training_form`,
            `template`, `attention`, `max_seq_length`), over those saved.
        **kwargs: As for `SentenceTransformer`.

    Raises:
        LacosError: No decoder, a directory that holds no model, or contradicting options.

    Example:
        >>> model = LacosSentenceTransformer("lacos-bloom")
        >>> model.encode("Bonjour le monde").shape == (model.get_embedding_dimension(),)
        True
    """

    _module_classes: Mapping[str, type[nn.Module]] = {
        name: ours
        for ours, stock in STOCK.items()
        for name in (*names_of(ours), fullname(stock), *(f"{place}.{stock.__name__}" for place in _PLACES))
    }

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        modules: Iterable[nn.Module] | OrderedDict[str, nn.Module] | None = None,
        is_trainable: bool = False,
        pooling: str = "weightedmean",
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._transformer_options = transformer_options or {}
        self._default_pooling = pooling
        self.is_plain_checkpoint = False
        path = resolve(str(model_name_or_path)) if model_name_or_path is not None else None
        if path is not None:
            check_directory(Path(path), self._module_classes, bool(kwargs.get("trust_remote_code")))
        if modules is not None and not isinstance(modules, OrderedDict):
            modules = OrderedDict((str(position), module) for position, module in enumerate(modules))
        for module in (modules or {}).values():
            if type(module) in OURS:
                module.__class__ = OURS[type(module)]
        # ST advises fp32 on every CPU; the compute dtype is chosen by what this one does well
        with without("sentence_transformers.base.model", "was loaded in torch."):
            super().__init__(path, modules=modules, **kwargs)
        if path is not None:  # modules beside a path are ignored, as by ST
            frozen = self.transformer.frozen_modules
            for name, module in self._above():
                if frozen is None or name in frozen:
                    freeze_(module)
            if is_trainable:
                self.transformer.set_trainable()
        self._check_template()
        self.training_record: dict[str, Any] | None = None

    @as_many_threads_as_serve()  # what stands between forward passes too
    @wraps(SentenceTransformer.encode)
    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As ST's."""
        return super().encode(*args, **kwargs)

    @as_many_threads_as_serve()
    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As ST's."""
        return super().forward(input, **kwargs)

    @property
    def transformer(self) -> LacosTransformer:
        """The first module.

        Raises:
            LacosError: It is no `LacosTransformer`.
        """
        if not isinstance(self[0], LacosTransformer):
            raise LacosError(
                f"The first module is {type(self[0]).__name__}, and LACoS needs one LacosTransformer there. Use "
                'prompts={"query": ..., "document": ...} to tell queries and documents apart.'
            )
        return self[0]

    def _above(self) -> list[tuple[str, nn.Module]]:
        """Name and module of what comes after the transformer."""
        return list(self.named_children())[1:]

    @property
    def pooling(self) -> Pooling:
        """The module that makes one embedding of a text's tokens.

        Raises:
            LacosError: There is none.
        """
        for module in self:
            if isinstance(module, Pooling):
                return module
        raise LacosError("The model has no pooling: make it of [LacosTransformer(...), LacosPooling(...)].")

    def _check_template(self) -> None:
        if any(isinstance(module, Pooling) and not module.include_prompt for module in self):
            self._check_prompt_can_be_left_out()

    def _check_prompt_can_be_left_out(self) -> None:
        template = self.transformer.template
        if not template.startswith("{text}"):
            raise LacosError(
                f"include_prompt=False cannot go with the template {template!r}: the prompt would stand inside the "
                "template and could not be left out. Use a template that begins with {text}."
            )

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """As ST's.

        Raises:
            LacosError: The template puts something before the prompt, so that it cannot be left out.
        """
        if not include_prompt:
            self._check_prompt_can_be_left_out()
        super().set_pooling_include_prompt(include_prompt)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What torch's DDP need not send: every process has the 8-bit table, which never changes, from its files."""
        tables = [name for name, module in self.named_modules() if isinstance(module, LacosEmbedding8bit)]
        return [f"{name}.{buffer}" for name in tables for buffer in ("weight", "absmax")]

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise LacosError(
            "torch's DataParallel copies the model to each GPU at every step, where bitsandbytes' 8-bit weights lose "
            "their scales. Start a process for each GPU instead: torchrun --nproc-per-node N your_script.py."
        )

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Tells the Trainer not to copy the model to every GPU of the process: 8-bit weights lose their scales."""
        return self.transformer.quantization == "int8"

    # -- loading -----------------------------------------------------------------------------------------------

    def _get_module_init_defaults(self, class_ref: str) -> dict[str, Any]:
        if self._module_classes.get(class_ref) is LacosTransformer:
            return self._transformer_options
        return super()._get_module_init_defaults(class_ref)

    def _load_default_modules(
        self, model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        keys = ("token", "revision", "local_files_only", "trust_remote_code")
        hub = {"cache_dir": kwargs.get("cache_folder"), **{key: kwargs.get(key) for key in keys}}
        told: dict[str, Any] = {
            key: {**hub, **(kwargs.get(key) or {})} for key in ("model_kwargs", "processor_kwargs", "config_kwargs")
        }
        transformer = LacosTransformer(
            model_name_or_path,
            backend=self.backend,
            **told,
            **self._transformer_options,
        )
        self.is_plain_checkpoint = True
        return [transformer, LacosPooling(transformer.get_embedding_dimension(), self._default_pooling)], {}

    @classmethod
    def _load_with_module_classes(cls, model_name_or_path: str, module_classes: Any, **kwargs: Any) -> Any:
        """The Trainer reloads a checkpoint through this, by the stock names in it: read what trained, and no base."""
        return read_checkpoint(model_name_or_path, {**cls._module_classes, **module_classes}, **kwargs)

    # -- saving ------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | None,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
        self_contained: bool | None = None,
    ) -> None:
        """Save a directory that stock `SentenceTransformer` loads.

        Of several processes in a `torch.distributed` group the first one writes, and the others return at once: they
        hold the same model, and sentence-transformers' trainer lets all of them save to the same directory.

        Args:
            path: Directory; a model there is replaced after the new one is complete. As for ST, None saves nothing.
            model_name: As for ST. Where it is the name of the repository on the Hub that the directory will be uploaded
                to as files, stock classes load the model from there; `push_to_hub` gives it itself.
            create_model_card: As for ST.
            train_datasets: As for ST.
            safe_serialization: Must stay True: artifacts are safetensors only.
            self_contained: Write the base too. Default: if there is no adapter, or unless the base lies on the Hub as
                it is, or, for a Trainer's `checkpoint-<step>`, anywhere.

        Raises:
            LacosError: The disk is full or not writable, or there is nothing to save.
        """
        if path is None or get_rank() > 0:
            return
        transformer = self.transformer
        target = Path(path)
        in_checkpoint = is_checkpoint(target) and bool(transformer.adapter_names)
        saved_choice = transformer.save_base
        if self_contained is not None:
            transformer.save_base = self_contained
        elif not (transformer.adapter_names and transformer.is_base_frozen and transformer.is_base_stored):
            transformer.save_base = True
        elif in_checkpoint:
            transformer.save_base = False
        transformer.frozen_modules = [
            name
            for name, module in self._above()
            if list(module.parameters()) and not any(parameter.requires_grad for parameter in module.parameters())
        ]
        self._saving_to = target.resolve().name
        name = model_name or self.model_card_data.model_id
        transformer.hub_name = name if is_hub_name(name) else None
        stage = None
        try:
            stage = stage_for(target)
            super().save(
                str(stage), model_name, create_model_card and not in_checkpoint, train_datasets, safe_serialization
            )
            name_stock_classes(list(self), stage)
            if self.training_record is not None:
                write_json(stage / "training.json", self.training_record)
            move_into(stage, target)
        except (OSError, SafetensorError) as error:
            raise disk_error(error, target) from error
        finally:
            transformer.save_base = saved_choice
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)

    def save_pretrained(self, path: str | None, *args: Any, **kwargs: Any) -> None:
        """Save the model; see `save`."""
        self.save(path, *args, **kwargs)

    def push_to_hub(self, *args: Any, self_contained: bool | None = None, **kwargs: Any) -> str:
        """As ST's; `self_contained` says, as for `save`, whether the base is uploaded or its name on the Hub alone.

        Raises:
            LacosError: Nobody else could load what would be uploaded.
        """
        transformer = self.transformer
        given = inspect.signature(super().push_to_hub).bind(*args, **kwargs).arguments
        if given.get("local_model_path") is not None:
            check_others_can_load(given["local_model_path"])
        elif self_contained is False:
            transformer.check_others_find_base()
        saved_choice = transformer.save_base
        transformer.save_base = saved_choice if self_contained is None else self_contained
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            transformer.save_base = saved_choice

    def _create_model_card(self, path: str, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As ST's, with what `card.py` knows; a card that cannot be made is logged and the model saved, as by ST."""
        card = Path(path) / "README.md"
        try:
            fill_in(self.model_card_data, self.transformer.base, self.training_record)
            super()._create_model_card(path, model_name, *args, **kwargs)
            if card.is_file():  # ST logs what it cannot make
                told = card.read_text(encoding="utf-8")
                size = self.get_embedding_dimension()
                text = complete(told, list(self), size, self.training_record, self._saving_to)
                card.write_text(text, encoding="utf-8")
        except OSError:
            raise
        except Exception:
            logger.exception("The model card could not be made, and the model is saved without it.")

    def describe(self) -> dict[str, Any]:
        """What the model is made of; see `card.describe`."""
        return describe(list(self), self.get_embedding_dimension())

    def _push_to_hub_usage_tip(self, repo_id: str) -> str:
        """As ST's, with a class that its reader can import."""
        ours, stock = type(self).__name__, SentenceTransformer.__name__
        tip = super()._push_to_hub_usage_tip(repo_id)
        if inexpressible(list(self)):
            return tip.replace(
                f"from sentence_transformers import {ours}", f"from {type(self).__module__} import {ours}"
            )
        return tip.replace(ours, stock)

    # -- training and adapters ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """As torch's; where nothing trains it says what to do, to a Trainer in an error: `backward` does not."""
        if mode and not any(parameter.requires_grad for parameter in self.parameters()):
            advice = (
                "Nothing in this model trains: add_lora() adds an adapter that does; one that was saved trains on with "
                "LacosSentenceTransformer(..., is_trainable=True)."
            )
            if "generated_from_trainer" in self.model_card_data.tags:  # ST's Trainer puts it there
                raise LacosError(advice)
            warnings.warn(advice, stacklevel=2)
        return super().train(mode)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """ST's `fit`, with bitsandbytes' 8-bit AdamW (arXiv 2110.02861) unless another optimiser is given."""
        given = inspect.signature(super().fit).bind(*args, **kwargs)
        given.arguments.setdefault("optimizer_class", bnb.optim.AdamW8bit)
        super().fit(*given.args, **given.kwargs)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """As ST's.

        Raises:
            LacosError: The name is one that cannot be saved.
        """
        check_adapter_name("default" if adapter_name is None else adapter_name)
        super().add_adapter(adapter_config, adapter_name)

    def add_lora(self, *args: Any, **kwargs: Any) -> Self:
        """Add a trainable adapter; see `LacosTransformer.add_lora`."""
        self.transformer.add_lora(*args, **kwargs)
        return self

    def merge_adapter(self) -> Self:
        """Fold the adapter into the base, in float, and quantise it again; see `LacosTransformer.merge_adapter`."""
        self.transformer.merge_adapter()
        return self
