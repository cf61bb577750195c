"""A real but nearly free model, texts for it, and quiet settings of `encode_file`."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

TEXTS = ["alpha", "", "beta gamma", "  ", "吉他 theta alpha", "delta", "ζήτα beta beta", "gamma", "theta", "beta"]
QUIET = {"show_progress": False, "chunk_size": 3, "batch_size": 2}
WORDS = ["alpha", "beta", "gamma", "delta", "епсилон", "ζήτα", "吉他", "theta"]


def static_model(dimension: int = 32) -> SentenceTransformer:
    """A real but nearly free model: the mean of random word vectors."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{word: i for i, word in enumerate(WORDS, 1)}}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=dimension)], device="cpu")
