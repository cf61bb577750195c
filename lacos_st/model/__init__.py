"""The SentenceTransformer: its modules, adapters and template, and how it is saved and loaded."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "LacosSentenceTransformer":  # a class path of before there were packages
        from lacos_st.model.model import LacosSentenceTransformer

        return LacosSentenceTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
