"""Small STS files and one training step, for the tests of everything that evaluates."""

import json
import random
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

WORDS = ["the", "a", "red", "blue", "old", "cat", "dog", "house", "river", "runs", "sleeps", "sees", "near", "under"]


def write_set(directory: Path, name: str, pairs: int = 40, seed: int = 0, **change) -> Path:
    """A set whose score is the share of common words, with noise."""
    rng = random.Random(seed)
    rows = []
    for _ in range(pairs):
        first = rng.choices(WORDS, k=6)
        second = [word if rng.random() < 0.6 else rng.choice(WORDS) for word in first]
        common = sum(a == b for a, b in zip(first, second, strict=True))
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": common / 6 * 5, **change})
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def step(model: SentenceTransformer) -> None:
    """One training step, the plainest there is."""
    features = model.preprocess(["the red cat", "a blue dog"]) if hasattr(model, "preprocess") else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    loss = model(features)["sentence_embedding"].square().sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
