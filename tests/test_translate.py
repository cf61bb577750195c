"""`recipes/bloom-mini/translate.py`, over a stand-in for Apertium, which few machines have."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import translate

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
    monkeypatch.setattr(translate, "CHUNK", 3)
    sentences = [f"sentence {i}" for i in range(10)]
    routes = {"es": ("eng-spa",), "pt": ("eng-spa", "spa-cat", "cat-por_BR")}
    found = list(translate.translations(sentences, routes))
    assert found == [
        (text, {"es": f"eng-spa({text})", "pt": f"cat-por_BR(spa-cat(eng-spa({text})))"}) for text in sentences
    ]


def test_a_sentence_that_stops_it_has_no_translation_and_the_others_have():
    sentences = ["one", "stumble", "two", "three", "stumble", "stumble"]
    found = translate.run("eng-spa", tuple(sentences))
    assert found == ["eng-spa(one)", "", "eng-spa(two)", "eng-spa(three)", "", ""]
    translated = dict(translate.translations(sentences, translate.OF_SPANISH))
    assert translated["three"] == {"pt": "cat-por_BR(spa-cat(three))"}
    assert "stumble" not in str(translated["stumble"])


def test_marks_of_unknown_words_are_taken_out():
    assert translate.run("eng-spa", ("an unknown word",)) == ["eng-spa(an unknown word)"]


def test_a_pair_that_is_not_installed_is_named():
    with pytest.raises(SystemExit, match="eng-cat"):
        list(translate.translations(["one"], translate.OF_ENGLISH))


def test_without_apertium_all_pairs_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="cat-por_BR, spa-cat not found"):
        list(translate.translations(["one"], translate.OF_SPANISH))
