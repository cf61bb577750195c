"""`recipes/bloom-mini/run.sh`: from text to a packed base that stock sentence-transformers loads, at toy size."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pack
import pyarrow.parquet as pq
from recipe_text import write_teacher
from sentence_transformers import SentenceTransformer

from lacos_st.embedded import unpack as embedded

RECIPE = Path(pack.__file__).parent
TESTED = "woad woaf woah woaj"
STAGES = ["collect", "tokenizer", "teach", "teach", "distil", "distil", "retrofit", "pack"]


def sentence(language, numbers):
    """Of invented words: "wo" or "pa" and two letters."""
    return " ".join(f"{language}{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in numbers)


def write_text(folder):
    """1,100 sentences of three hundred words in English and Spanish, and an STS set that has one of them."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(1100):
        numbers = [number % 300, *random.integers(0, 300, random.integers(3, 7))]
        rows.append({"en": sentence("wo", numbers), "es": sentence("pa", numbers)})
    rows.append({"en": TESTED.upper() + "!", "es": "paad"})
    for path, lines in {
        "parallel/tatoeba.en-es.train.jsonl.gz": rows,
        "sts/stsb.en.test.jsonl.gz": [{"sentence1": TESTED, "sentence2": "another", "score": 1.0}],
    }.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return [text for row in rows for text in row.values()]


def commands(tmp_path, **settings):
    """The stages that run.sh calls, with their arguments; a stand-in for Python notes them down."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf \'%s\\t\' "$@" >>"$NOTED"\necho >>"$NOTED"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "NOTED": str(tmp_path / "noted"), **settings}
    subprocess.run(["bash", RECIPE / "run.sh", str(tmp_path / "data")], env=environment, check=True)
    return [line.rstrip("\t").split("\t") for line in (tmp_path / "noted").read_text().splitlines()]


def test_text_becomes_a_packed_base(tmp_path, monkeypatch):
    texts = write_text(tmp_path / "data")
    work, output = tmp_path / "work", tmp_path / "assets" / "bloom-mini"
    found = commands(
        tmp_path,
        WORK_DIR=str(work),
        OUTPUT=str(output),
        FIRST_TEACHER=str(write_teacher(tmp_path / "first", texts)),
        SECOND_TEACHER=str(write_teacher(tmp_path / "second", texts, width=40)),
        HIDDEN="32",
        LAYERS="1",
        BATCH="64",
        VOCABULARY="900",
        STATIC_STEPS="3",
        DEEP_STEPS="5",
    )
    assert [Path(command[0]).stem for command in found] == STAGES
    for script, *arguments in found:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        importlib.import_module(Path(script).stem).main()

    collected = pq.read_table(work / "texts.parquet")["text"].to_pylist()
    assert len(collected) > 2000
    assert "paad" in collected
    assert TESTED not in [text.lower().strip("!") for text in collected]
    assert "CC BY 2.0 FR" in (output / "README.md").read_text(encoding="utf-8")
    assert not (output / "model.safetensors").stat().st_size > 60_000  # 900 rows of 32 numbers, a layer of 32
    monkeypatch.setattr(embedded, "ASSETS", output.parent)
    embedded.unpack("bloom-mini", tmp_path / "unpacked")
    probe = texts[:50]
    trained, packed = (
        SentenceTransformer(str(path)).encode(probe) for path in (work / "retrofitted", tmp_path / "unpacked")
    )
    assert packed.shape == (50, 64)
    np.testing.assert_allclose(np.linalg.norm(packed, axis=1), 1, atol=1e-5)
    assert (trained * packed).sum(1).min() > 0.95  # what 8 and 4 bits lose
    assert (packed @ packed.T).min() < 0.9  # sentences are told apart
