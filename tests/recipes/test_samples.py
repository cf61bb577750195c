"""`recipes/bloom-mini/samples.py`, over a stand-in for Apertium, which few machines have."""

import gzip
import json
import sys

import pytest
import samples
from collect import norm

STAND_IN = f"""#!{sys.executable}
import sys
if sys.argv[1] == "-l":
    print("eng-spa", "spa-cat", "cat-por_BR", sep="\\n")
    sys.exit()
found = []
for sentence in sys.stdin.read().removesuffix("\\n").split("\\n\\n"):
    if "stumble" in sentence:
        found.append("")
        break
    found.append(sys.argv[2] + "(" + sentence.replace("unknown", "*unknown") + ")")
print("\\n\\n".join(found))
"""


@pytest.fixture(autouse=True)
def apertium(tmp_path, monkeypatch):
    path = tmp_path / "apertium"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_each_sentence_goes_through_its_pairs_in_order(monkeypatch):
    monkeypatch.setattr(samples, "CHUNK", 3)
    sentences = [f"sentence {i}" for i in range(10)]
    found = samples.translations(sentences, samples.ROUTES["pt"])
    assert found == {text: f"cat-por_BR(spa-cat(eng-spa({text})))" for text in sentences}
    assert list(found) == sentences


def test_a_sentence_that_stops_it_has_no_translation_and_the_others_have():
    sentences = ["one", "stumble", "two", "three", "stumble", "stumble"]
    assert samples.apertium("eng-spa", tuple(sentences)) == [
        "eng-spa(one)",
        "",
        "eng-spa(two)",
        "eng-spa(three)",
        "",
        "",
    ]


def test_marks_of_unknown_words_are_taken_out():
    assert samples.apertium("eng-spa", ("an unknown word",)) == ["eng-spa(an unknown word)"]


def test_a_pair_that_is_not_installed_is_named(monkeypatch):
    with pytest.raises(SystemExit, match="eng-cat"):
        samples.translations(["one"], samples.ROUTES["fr"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="cat-por_BR, eng-spa, spa-cat not found"):
        samples.translations(["one"], samples.ROUTES["pt"])


def row(name, dataset="snli.dev", **changes):
    return {"anchor": f"{name} a", "positive": f"{name} p", "negative": f"{name} n", "dataset": dataset, **changes}


def triplets_in(folder, rows):
    path = folder / "nli" / "triplets.en.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


ROWS = [
    row("good"),
    row("tested", negative="A man is playing a guitar."),
    row("long", positive="x" * 121),
    row("foreign", dataset="xnli.train"),
]


def test_no_forbidden_long_or_unlicensed_sentence_is_translated(tmp_path):
    triplets_in(tmp_path, ROWS)
    found = samples.english_triplets(tmp_path, {norm("a man is playing a guitar")}, 120)
    assert found == [{"anchor": "good a", "positive": "good p", "negative": "good n"}]
    translated = samples.translated(found, "es")
    assert translated == [{"anchor": "eng-spa(good a)", "positive": "eng-spa(good p)", "negative": "eng-spa(good n)"}]


def test_held_out_triplets_share_no_anchor_with_those_trained_on(tmp_path):
    held = [row(f"held {i}", "snli.test") for i in range(3)]
    triplets_in(tmp_path, [*ROWS, *held, row("x", anchor="Held 1 a!")])
    found = samples.nli(tmp_path, {norm("a man is playing a guitar")}, 120, 3, 0)
    assert sorted(row["anchor"] for row in found["nli-dev"]) == ["held 0 a", "held 1 a", "held 2 a"]
    assert [row["anchor"] for row in found["nli-train"]] == ["good a"]
