"""Evaluation on sentence similarity and retrieval with MTEB, and its reports."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "STSEvaluator":  # a class path of before there were packages
        from lacos_st.evaluation.evaluate import STSEvaluator

        return STSEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
