"""The folder of the recipe's stages in small: three languages, and teachers who say anything."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizer
import torch
from transformers import BertConfig, BertModel

COUNT = 520  # sentences of each language
VOCABULARY = 400
WORDS = {
    "en": ["the", "dog", "cat", "man", "woman", "runs", "sleeps", "plays", "guitar", "red", "house", "river"],
    "es": ["el", "perro", "gato", "hombre", "mujer", "corre", "duerme", "toca", "guitarra", "rojo", "casa", "río"],
    "de": ["der", "Hund", "Katze", "Mann", "Frau", "läuft", "schläft", "spielt", "Gitarre", "rot", "Haus", "Fluss"],
}


def write_teacher(folder: Path, texts: list[str], width: int = 48) -> Path:
    """A small random BERT with a tokenizer for the texts."""
    found = tokenizer.build(texts, VOCABULARY)
    found.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(found), pad_token_id=found.pad_token_id, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write(folder: Path) -> Path:
    """All that stages find after `teach.py`."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        meaning = random.integers(0, 12, random.integers(2, 7))
        for lang, words in WORDS.items():
            text = " ".join(words[i] for i in meaning) + f" {number}"
            rows.append((text, lang, 3 * number, "tatoeba"))
    rows += [(f"palabra{i}", "es", -1, "words") for i in range(COUNT)]
    tokenizer.build([row[0] for row in rows], VOCABULARY).save_pretrained(folder / "tokenizer")
    columns = dict(zip(("text", "lang", "english", "source"), map(list, zip(*rows, strict=True)), strict=True))
    columns["english"] = pa.array(columns["english"], pa.int32())
    pq.write_table(pa.table(columns), folder / "texts.parquet")

    def said(count, width):
        vectors = random.standard_normal((count, width))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    english = np.arange(0, 3 * COUNT, 3, dtype=np.int32)
    np.save(folder / "english.npy", english)
    np.save(folder / "teacher.npy", said(COUNT, 48))
    words = [len(rows[i][0].split()) for i in english]
    np.save(folder / "starts.npy", np.cumsum([0, *words]))
    np.save(folder / "words.npy", said(sum(words), 48))
    np.save(folder / "second-rows.npy", np.arange(4 * COUNT, dtype=np.int32))
    np.save(folder / "second.npy", said(4 * COUNT, 36) + np.float16(0.5))
    for name in ("teacher", "second"):
        (folder / f"{name}.json").write_text(json.dumps({"chunks": 1}))
    rarity = random.uniform(0.1, 5, (3, VOCABULARY)).astype(np.float16)
    np.savez(folder / "rarity.npz", langs=np.array(["de", "en", "es"]), rarity=rarity)
    np.save(folder / "token-said.npy", random.standard_normal((VOCABULARY, 36)).astype(np.float16))
    return folder
