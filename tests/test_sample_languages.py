"""What is translated is chosen by its English: a sentence of an STS set is one in any language."""

import gzip
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "bloom-mini"))
from collect import norm
from sample_languages import english_triplets


def test_no_forbidden_long_or_unlicensed_sentence_is_translated(tmp_path):
    def row(name, dataset="snli.dev", **changes):
        return {"anchor": f"{name} a", "positive": f"{name} p", "negative": f"{name} n", "dataset": dataset, **changes}

    rows = [
        row("good"),
        row("tested", negative="A man is playing a guitar."),
        row("long", positive="x" * 121),
        row("foreign", dataset="xnli.train"),
    ]
    path = tmp_path / "nli" / "triplets.en.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = english_triplets(tmp_path, {norm("a man is playing a guitar")}, 120)
    assert found == [{"anchor": "good a", "positive": "good p", "negative": "good n"}]
