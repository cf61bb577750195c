"""8-bit LoRA sentence embeddings from BLOOM and other decoders, as a sentence-transformers plugin.

Importing the package loads nothing and changes nothing: every name below is resolved on first use.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from lacos_st.quiet import of_no_kernels

__version__ = "0.1.0"
__path__ = [*__path__, str(Path(__file__).with_name("former"))]  # class paths of before there were packages

_HOME = {
    "LacosConfig": "config",
    "LacosTransformer": "model.transformer",
    "LacosDense": "model.dense",
    "LacosLayerNorm": "model.dense",
    "LacosPooling": "model.pooling",
    "LacosSentenceTransformer": "model.model",
    "accelerate": "model.accelerate",
    "LacosBloomModel": "decoder.bloom",
    "MaskedMultipleNegativesRankingLoss": "training.losses",
    "CachedMaskedMultipleNegativesRankingLoss": "training.losses",
    "train": "training.train",
    "evaluate": "evaluation.evaluate",
    "STSEvaluator": "evaluation.evaluate",
    "write_report": "evaluation.report",
    "check_overlap": "evaluation.overlap",
    "encode_file": "encoding.encode",
    "encode_files": "encoding.ray_engine",
    "load_training_data": "data.load",
    "load_training_sources": "data.load",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        of_no_kernels()
        return getattr(import_module(f"lacos_st.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lacos_st' has no attribute {name!r}")
