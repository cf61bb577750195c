"""What lies in a saved model's directory: the 8-bit base, adapters, and how they get there whole.

    model.safetensors, config.json            the base, where the model is self-contained
    adapter/, adapter/<name>/                 the active adapter and the others; without a base: `.` and `<name>/`
    lacos.json                                what stock ST has no field for and ignores
    1_Dense/, 2_Pooling/, ...                 the modules after the transformer
    checkpoint-<step>/                        the Trainer's: without the base, if it is frozen, by reference to it

Tensors are written under the names that stock transformers and PEFT read, as safetensors only. A model is staged
beside its target and then moved, so that no reader ever sees half of one.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lacos_st.errors import LacosError
from lacos_st.frozen import is_trained

RECORD = "lacos.json"
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def write_base(model: PreTrainedModel, root: Path) -> None:
    """Write the base without its adapters, under stock BLOOM's names."""
    state = {}
    for key, tensor in model.state_dict().items():
        if not is_trained(key):
            state[key.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor.contiguous()
    save_torch_state_dict(state, root, max_shard_size="4GB")
    config = deepcopy(model.config)
    config.architectures = ["BloomModel"]
    config.save_pretrained(root)


def write_adapter(
    folder: Path, config: PeftConfig, state: dict[str, Tensor], base: str | None, revision: str | None
) -> None:
    """Write one adapter as PEFT does.

    Args:
        folder: Where to.
        config: The adapter's configuration.
        state: Its tensors, as in the model that it is injected in.
        base: Name or path of the base, for whoever loads the adapter by itself.
        revision: Of the base on the Hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = deepcopy(config)
    config.inference_mode = True
    config.init_lora_weights = True  # else loading would take OLoRA's or PiSSA's beginning out of the base once more
    config.base_model_name_or_path = base
    config.revision = revision
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{key}": value.detach().contiguous() for key, value in state.items() if is_trained(key)
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def describe_base(source: str, recorded: dict[str, str | None] | None, commit: str | None) -> dict[str, str | None]:
    """Say what the base of a model is.

    Args:
        source: Where it was loaded from: a directory or a name on the Hub.
        recorded: What that directory's `lacos.json` says of it.
        commit: The commit of a base on the Hub.

    Returns:
        Its "name" and "revision", and for a local base its "path": only checkpoints write that down.
    """
    if Path(source).is_dir():
        origin = recorded or {"name": Path(source).resolve().name, "revision": None}
        has_weights = any(Path(source).glob("model*.safetensors*")) or any(Path(source).glob("pytorch_model*"))
        return {"path": str(Path(source).resolve()), **origin} if has_weights else origin
    return recorded or {"name": source, "revision": commit}


def is_hub_name(name: str | None) -> bool:
    """Whether a name is of the form `owner/model`, and no local path."""
    return name is not None and not Path(name).is_absolute() and name.count("/") == 1 and not Path(name).exists()


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a directory has the name of a Trainer's checkpoint."""
    return _CHECKPOINT.fullmatch(Path(path).name) is not None


def stage_for(target: Path) -> Path:
    """Make a directory for a model to be written to, on the file system on which it is to lie.

    It is beside the target, or in it where the target is a mount point, and leads nowhere by a link.
    """
    home = target.resolve()
    home.parent.mkdir(parents=True, exist_ok=True)
    mounted = home.is_dir() and home.stat().st_dev != home.parent.stat().st_dev
    return Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home if mounted else home.parent))


def move_into(stage: Path, target: Path) -> None:
    """Put a complete staged model in place: by one rename where possible, else file by file, listings last.

    Of a model that lay there, what the new one has not is taken away. Anything else is left as it is.
    """
    for path in (stage, *stage.rglob("*")):  # safetensors and temporary folders are for one's own eyes
        path.chmod(0o755 if path.is_dir() else 0o644)
    if not target.exists():
        stage.rename(target)
        return
    kinds = ("*", "adapter/**/*") if (target / "modules.json").is_file() else ()
    found = [file for kind in kinds for file in target.glob(kind) if _is_ours(file.relative_to(target))]
    replaced = sorted(found, key=lambda file: -len(file.parts))  # folders in folders first
    files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    files.sort(key=lambda file: file.name == "modules.json")
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / file, target / file)
    for old in replaced:
        if old.relative_to(target) not in files:
            old.unlink()
            with suppress(OSError):  # of an adapter that is no more
                old.parent.rmdir()


def _is_ours(file: Path) -> bool:
    """Whether a file below a model's directory is one that a later model may have to be without."""
    folder, name = file.parts[:-1], file.name
    if folder[:1] == ("adapter",):
        return name in _ADAPTER
    return not folder and (name in ("config.json", "training.json", *_ADAPTER) or bool(_WEIGHTS.fullmatch(name)))


def disk_error(error: Exception, target: Path) -> LacosError:
    """What to tell the user whose disk did not take a model.

    Args:
        error: The operating system's, or that of safetensors, which has its number in its text.
        target: What was to be written.
    """
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EACCES: "it is not writable",
        errno.EROFS: "it is read-only",
    }
    told = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
    return LacosError(
        f"Saving to {str(target)!r} failed: {reason.get(number, str(error))}. Nothing that was there has "
        "changed; free space or choose another directory and save again."
    )
