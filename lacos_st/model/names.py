"""Which model a name means: a local directory or GGUF file first, then an embedded one, a package's, or the Hub's."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from lacos_st.embedded.names import EMBEDDED
from lacos_st.embedded.unpack import embedded_directory
from lacos_st.errors import LacosError
from lacos_st.model.artifact import RECORD
from lacos_st.model.bases import BASES, base_directory, from_gguf
from lacos_st.model.decoders import check_decoder
from lacos_st.model.placing import finish_move

_MODEL_FILES = ("modules.json", "config.json", "adapter_config.json")


def resolve(name: str) -> str:
    """Directory or Hub name of a model.

    Args:
        name: As a user gives it. An embedded model is unpacked on the first call, and a GGUF file converted.

    Returns:
        What sentence-transformers and transformers load.

    Raises:
        LacosError: A file, a directory that holds no model, a path that does not exist, or a name of nothing.
    """
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    path = Path(name)
    if path.is_dir():
        finish_move(path)
        if not any((path / file).is_file() for file in _MODEL_FILES):
            raise LacosError(
                f"The directory {name!r} holds no model (no modules.json, config.json or adapter_config.json). "
                "Remove it, or give another name."
            )
        return name
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(from_gguf(path))
    if path.is_file():
        raise LacosError(f"{name!r} is a file, and a model is a directory, or a file of llama.cpp (.gguf).")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise LacosError(
            f"There is no directory {name!r}: give the path of a saved model, or a Hub name (owner/model)."
        )
    if name in EMBEDDED:
        return str(embedded_directory(name))
    if name in BASES:
        return str(base_directory(name))
    if "/" not in name:
        if Path(f"{name}.run").is_dir():
            raise LacosError(f"Training {name!r} is unfinished ({name}.run): run the same `lacos-st train` again.")
        near = get_close_matches(name.lower().replace("_", "-"), [*EMBEDDED, *BASES], 1)
        raise LacosError(
            f"There is no model {name!r}: no directory has that name, the embedded models are "
            f"{' and '.join(EMBEDDED)}, packages carry {', '.join(BASES)}, and names on the Hub have an owner "
            "(bigscience/bloom-560m)." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    return name


def find(name: str, revision: str | None = None) -> str:
    """Resolve a name, and look whether there is such a model on the Hub or in its cache; fetches a small file at most.

    Args:
        name: As for `resolve`.
        revision: Of a name on the Hub.

    Returns:
        As `resolve`.

    Raises:
        LacosError: As `resolve`, or no such model can be had.
    """
    source = resolve(name)
    if Path(source).is_dir():
        return source
    reasons = []
    for file in _MODEL_FILES:
        try:
            hf_hub_download(source, file, revision=revision)
            return source
        except (OSError, ValueError) as error:
            reasons.append(error)
    why = str(reasons[0]).strip().splitlines()[0]
    raise LacosError(
        f"There is no directory {name!r}, and the Hub gives no model of that name ({why}). Check the spelling, and "
        "that there is a network and HF_HUB_OFFLINE is unset."
    ) from reasons[0]


def is_decoder(name: str) -> bool:
    """Whether a directory, embedded model or Hub name (where it can be reached) is a decoder, or an adapter for one."""
    known = name in EMBEDDED or name in BASES or name.endswith(".gguf")
    if Path(name, RECORD).is_file() or (known and not Path(name).is_dir()):
        return True
    try:
        check_decoder(PreTrainedConfig.get_config_dict(name)[0], name)
    except (LacosError, OSError, ValueError, KeyError, TypeError, AttributeError):  # another library's, or none at all
        return False
    return True


# hidden size, layers, heads of the published checkpoints, so that a question needs no download
_PUBLISHED = {
    "bigscience/bloom-560m": (1024, 24, 16),
    "bigscience/bloom-1b1": (1536, 24, 16),
    "bigscience/bloom-1b7": (2048, 24, 16),
    "bigscience/bloom-3b": (2560, 30, 32),
    "bigscience/bloom-7b1": (4096, 30, 32),
}


def base_config(name: str, revision: str | None = None) -> Any:
    """Configuration of a base, without its weights.

    Args:
        name: One of BLOOM's published sizes (no network needed), a local directory, an embedded or a Hub name; of
            adapters that lie there without their base, the base counts.
        revision: Of a name on the Hub.

    Returns:
        Its configuration, as transformers has it.

    Raises:
        LacosError: There is no such model, or it is no decoder.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, BloomConfig
    from transformers.utils import find_adapter_config_file

    if name in _PUBLISHED and not Path(name).is_dir():
        hidden, layers, heads = _PUBLISHED[name]
        return BloomConfig(vocab_size=250880, hidden_size=hidden, n_layer=layers, n_head=heads)
    source = resolve(name)
    try:
        if adapter := find_adapter_config_file(source, revision=revision):
            return base_config(json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"])
        config = AutoConfig.from_pretrained(source, revision=revision)
    except LacosError:  # of its base
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        why = " ".join(str(error).split())
        raise LacosError(f"There is no model {name!r}, neither as a directory nor on the Hub: {why}") from error
    check_decoder(config.to_dict(), name)
    return config
