"""`recipes/bloom-mini`: what teachers read, and what is kept of it."""

import numpy as np
import pytest
import teach
import tokenizer as recipe
import torch
from collect import FAVOUR, frequent_words
from recipe_text import write_teacher
from transformers import AutoModel, AutoTokenizer

TEXTS = ["A man is playing a guitar.", "Dogs run", "", "The  unbelievably long-winded river"]


def test_any_first_part_has_what_favour_says_of_a_language_until_that_is_used_up():
    langs = np.array(["es"] * 30_000 + ["en"] * 30_000 + ["uz"] * 300)
    english = np.arange(30_000, 60_000)[::-1]
    rows = teach.shared_out(langs, english)
    assert sorted(rows.tolist()) == [*range(len(langs))]
    found = langs[rows[:10_000]]
    assert (found == "uz").sum() == 300
    assert abs((found == "es").sum() / (found == "en").sum() - FAVOUR["es"] / FAVOUR["en"]) < 0.01
    assert np.array_equal(rows[langs[rows] == "en"], english)
    assert np.array_equal(rows, teach.shared_out(langs, english))


def test_words_are_those_of_the_text_where_words_stand_apart():
    texts = [("«मी घरी जातो.»", "mr", "tatoeba"), ("मी घरी आहे, 3", "mr", "ntrex128")]
    texts += [("La casa la casa", "es", "tatoeba"), ("my my", "th", "tatoeba")]
    licence = "that of the text in which they were met"
    words = [("es", "la"), ("es", "casa"), ("mr", "मी"), ("mr", "घरी")]
    found = [("words", licence, {lang: word}) for lang, word in words]
    assert [*frequent_words(texts, 100)] == found
    assert [*frequent_words(texts, 1)] == found[::2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"), TEXTS)


def test_a_chunk_is_read_as_each_sentence_by_itself(teacher):
    model, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    embeddings, words = teach.read(model, teach.encode(tokenizer, "", TEXTS))
    first = 0
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        batch = tokenizer([text], return_tensors="pt", return_offsets_mapping=True)
        number = teach.words_of(text, batch.pop("offset_mapping")[0].tolist())
        states = model(**batch).last_hidden_state[0].detach()
        wanted = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert np.abs(embedding - wanted).max() < 1e-3
        for word in range(len(text.split())):
            wanted = torch.nn.functional.normalize(states[number == word].sum(0), dim=0).numpy()
            assert np.abs(words[first] - wanted).max() < 1e-3
            first += 1
    assert first == len(words)


def test_reading_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(teach, "CHUNK", 4)
    rows = np.arange(10, dtype=np.float16)[:, None]
    asked = []

    def compute(begin, end):
        for chunk in range(begin, end):
            asked.append(chunk)
            yield (rows[4 * chunk : 4 * chunk + 4],)

    tables = {tmp_path / "said.npy": (np.arange(11), 1)}
    teach.fill(tmp_path / "state.json", tables, compute, chunks=2)
    assert teach.done(tmp_path / "state.json") == 8
    teach.fill(tmp_path / "state.json", tables, compute)
    assert asked == [0, 1, 2]
    assert np.array_equal(np.load(tmp_path / "said.npy"), rows)


def test_the_strings_of_tokens_are_what_they_spell():
    strings = teach.strings_of(recipe.build(["guitar guitar guitar"] * 3, 270))
    assert "guitar" in strings or "gui" in strings
