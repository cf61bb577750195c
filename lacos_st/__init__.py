"""8-bit LoRA BLOOM sentence embeddings, as a sentence-transformers plugin.

Importing the package loads nothing and changes nothing: every name below is resolved on first use.
"""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LacosConfig": "config",
    "LacosTransformer": "transformer",
    "LacosDense": "dense",
    "LacosPooling": "pooling",
    "LacosSentenceTransformer": "model",
    "accelerate": "model",
    "LacosBloomModel": "bloom",
    "MaskedMultipleNegativesRankingLoss": "losses",
    "CachedMaskedMultipleNegativesRankingLoss": "losses",
    "train": "training",
    "evaluate": "evaluation",
    "STSEvaluator": "evaluation",
    "write_report": "report",
    "check_overlap": "overlap",
    "encode_file": "encoding",
    "load_training_data": "data",
    "load_training_sources": "data",
}

__all__ = [*_HOME, "__version__"]


def _of_use(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        # On a CPU with AVX-512 bf16 bitsandbytes asks for a package that only its 4-bit layers need.
        logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_of_use)
        return getattr(import_module(f"lacos_st.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lacos_st' has no attribute {name!r}")
