"""Fixtures that several test files share: a tiny random BLOOM on disk, laid out like the Hub's."""

import os
from pathlib import Path

import hypothesis
import pytest
from tiny import write_tiny_bloom

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests are of the CPU; benchmarks/gpu.py checks a GPU
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Machines that run tests are busy: how long an example takes is no test.
hypothesis.settings.register_profile("lacos", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("lacos")


@pytest.fixture(scope="session")
def tiny_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random BLOOM: `<unk>, <s>, </s>, <pad>` = 0..3, left padding, no special tokens added."""
    return write_tiny_bloom(tmp_path_factory.mktemp("bloom") / "tiny-bloom")


@pytest.fixture
def tiny_model(tiny_bloom: Path):
    """An 8-bit model over `tiny_bloom` with a fresh adapter."""
    import torch

    from lacos_st.model.model import LacosSentenceTransformer

    torch.manual_seed(0)
    return LacosSentenceTransformer(tiny_bloom).add_lora(rank=4, dropout=0.1)
