"""What lies in a saved model's directory: the 8-bit base and adapters.

    model.safetensors, config.json            the base, where the model is self-contained
    adapter/, adapter/<name>/                 the active adapter and the others; without a base: `.` and `<name>/`
    lacos.json                                what stock ST has no field for and ignores
    1_Dense/, 2_Pooling/, ...                 the modules after the transformer
    checkpoint-<step>/                        the Trainer's: without the base, if it is frozen, by reference to it

Tensors are written under the names that stock transformers and PEFT read, as safetensors only. How a directory gets to
where it is to lie: `placing.py`.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, save_torch_state_dict
from safetensors.torch import save_file
from sentence_transformers.util import load_file_path
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lacos_st.errors import LacosError
from lacos_st.model.adapters import is_adapter_name, matrices
from lacos_st.model.frozen import base_dtype, is_trained

RECORD = "lacos.json"
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def write_base(model: PreTrainedModel, root: Path) -> None:
    """Write the base without its adapters, under the names that stock transformers reads."""
    state = {}
    for key, tensor in model.state_dict().items():
        if not is_trained(key):
            state[key.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor.contiguous()
    save_torch_state_dict(state, root, max_shard_size="4GB")
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("Lacos")]
    config.dtype = base_dtype(model)  # `.half()` does not tell it, and stock classes load what it says
    config.save_pretrained(root)


def write_adapters(
    root: Path, model: PreTrainedModel, names: list[str], base: str | None, revision: str | None
) -> None:
    """Write adapters as PEFT does, the first in a folder and the others in folders in it.

    Args:
        root: The first one's folder.
        model: Has them.
        names: Their names.
        base: Name or path of the base, for whoever loads an adapter by itself.
        revision: Of the base on the Hub.
    """
    for folder, name in zip((root, *(root / name for name in names[1:])), names, strict=False):
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(model.peft_config[name])
        config.inference_mode = True
        config.init_lora_weights = True  # else loading would take OLoRA's or PiSSA's start out of the base once more
        config.base_model_name_or_path = base
        config.revision = revision
        config.save_pretrained(str(folder))
        state = matrices(model, name)
        tensors = {f"base_model.model.{key}": value.detach().contiguous() for key, value in state.items()}
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def describe_base(
    source: str, recorded: dict[str, str | None] | None, commit: str | None, places: dict[str, Any] | None = None
) -> dict[str, str | None]:
    """Say what the base of a model is.

    Args:
        source: Where it was loaded from: a directory or a name on the Hub.
        recorded: What that directory's `lacos.json` says of it.
        commit: The commit of a base on the Hub.
        places: `token`, `cache_dir` and `local_files_only`: where its card is, if it is there.

    Returns:
        Its "name" and "revision"; what its card says of "license", "license_link", "language" and
        "non_commercial_sources"; and for a local base its "path", which only checkpoints write down.
    """
    if not Path(source).is_dir():
        return recorded or {"name": source, "revision": commit, **_terms(source, commit, places or {})}
    origin = recorded or {"name": Path(source).resolve().name, "revision": None, **_terms(source, None, {})}
    has_weights = any(Path(source).glob("model*.safetensors*")) or any(Path(source).glob("pytorch_model*"))
    return {"path": str(Path(source).resolve()), **origin} if has_weights else origin


def _terms(source: str, commit: str | None, places: dict[str, Any]) -> dict[str, str | None]:
    """What the card of a base says that holds for all that is made of it."""
    told: dict[str, Any] = {}
    with suppress(Exception):  # a card is no part of a model
        card = load_file_path(
            source,
            "README.md",
            token=places.get("token"),
            cache_folder=places.get("cache_dir"),
            revision=commit,
            local_files_only=places.get("local_files_only") or False,
        )
        told = (metadata_load(card) if card else None) or {}
    terms = {key: told.get(key) for key in ("license", "license_link", "language", "non_commercial_sources")}
    return {
        key: value if isinstance(value, str) else ", ".join(map(str, value)) for key, value in terms.items() if value
    }


UNNAMED = "<the name of this repository: push_to_hub and save(model_name=...) write it here>"
"""Stands in a self-contained model's adapter for its name on the Hub, which stock classes need there."""


def is_hub_name(name: str | None) -> bool:
    """Whether a name is of the form `owner/model`, and no local path."""
    return name is not None and not Path(name).is_absolute() and name.count("/") == 1 and not Path(name).exists()


def check_others_can_load(directory: str | os.PathLike[str]) -> None:
    """Refuse to upload a saved directory that only this machine can load.

    Raises:
        LacosError: It is an adapter whose base lies in a local directory, or its adapter does not say under which name
            its base will be found.
    """
    for folder in ("", "adapter"):
        try:
            base = json.loads(Path(directory, folder, _ADAPTER[0]).read_text(encoding="utf-8"))[
                "base_model_name_or_path"
            ]
        except (OSError, ValueError, KeyError):  # no adapter, or none that `opening.py` takes
            continue
        if base == UNNAMED:
            raise LacosError(
                f"The adapter in {str(directory)!r} does not say by which name its base will be found on the Hub, and "
                "stock classes would not load it. Save it with model_name='owner/name', or leave local_model_path out."
            )
        if not is_hub_name(base):
            raise LacosError(
                f"{str(directory)!r} is an adapter whose base lies in {base!r}, where nobody else finds it. Save it "
                "with self_contained=True, or leave local_model_path out."
            )


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a directory has the name of a Trainer's checkpoint."""
    return _CHECKPOINT.fullmatch(Path(path).name) is not None


def replaceable(directory: Path) -> set[Path]:
    """Those files of a saved model, by their paths in its directory, that a later one there may have to be without."""
    if not (directory / "modules.json").is_file():
        return set()
    try:
        names = json.loads((directory / RECORD).read_text(encoding="utf-8"))["adapters"]
    except (OSError, ValueError, KeyError):  # stock classes' own
        names = []
    names = [name for name in names if is_adapter_name(name)]
    folders = (".", "adapter", *names, *(f"adapter/{name}" for name in names))
    files = {Path(folder, file) for folder in folders for file in _ADAPTER}
    files |= {Path("config.json"), Path("training.json")}
    files |= {Path(file.name) for file in directory.iterdir() if _WEIGHTS.fullmatch(file.name)}
    return {file for file in files if (directory / file).is_file()}
