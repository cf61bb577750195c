"""`recipes/bloom-mini/compose.py`: words of several tokens come nearer to what they mean."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_matrix

from lacos_st import embedded
from lacos_st.bloom import LacosBloomModel

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import compose
import retrofit
from student import config, save

HIDDEN = 32


def test_solution_is_that_of_ridge_regression():
    random = np.random.default_rng(0)
    before, wanted = random.standard_normal((40, 8)), random.standard_normal((60, 8))
    words = random.random((60, 40)) * (random.random((60, 40)) < 0.1)
    weight, moves = random.random(60) + 0.5, np.arange(40) % 4 > 0
    found = compose.composed(before, csr_matrix(words), wanted, weight, moves)
    own = words[:, moves]
    left = own.T @ (weight[:, None] * own) + np.eye(moves.sum())
    step = np.linalg.solve(left, own.T @ (weight[:, None] * (wanted - words @ before)))
    np.testing.assert_allclose(found[moves], before[moves] + step, atol=1e-2 * np.abs(step).max())
    np.testing.assert_array_equal(found[~moves], before[~moves])


def test_a_target_is_the_weighted_mean_of_whole_words_of_like_meaning():
    random = torch.Generator().manual_seed(0)
    whole, vectors = torch.randn(90, 6, generator=random), torch.randn(90, HIDDEN, generator=random)
    said = torch.cat([whole[:5] + 0.2 * torch.randn(5, 6, generator=random), torch.zeros(1, 6)])
    found = compose.targets(said.numpy(), whole.numpy(), vectors)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cosines = unit(said[:5].double().numpy()) @ unit(whole.double().numpy()).T
    for row, cosine in zip(found, cosines, strict=False):
        near = np.argsort(-cosine)[: retrofit.NEIGHBOURS]
        weights = np.maximum(cosine[near] - retrofit.LEAST, 0)
        np.testing.assert_allclose(row, unit((weights[:, None] * vectors.double().numpy()[near]).sum(0)), atol=1e-5)
    assert not found[5].any()  # of which the teacher says nothing


def test_each_language_counts_as_the_root_of_its_favour_and_frequent_words_most():
    langs = np.array(["de"] * 50 + ["id"] * 20)
    weight = compose.importance(langs, np.concatenate([np.arange(50), np.arange(20)]))
    assert weight.mean() == pytest.approx(1)
    assert weight[langs == "de"].mean() / weight[langs == "id"].mean() == pytest.approx(
        (compose.FAVOUR["de"] / compose.FAVOUR["id"]) ** 0.5
    )
    assert (np.diff(weight[:50]) < 0).all()


def test_pieces_of_words_move_and_what_english_uses_does_not(tmp_path, monkeypatch, capsys):
    embedded.unpack("bloom-mini", tmp_path / "tokenizer")
    torch.manual_seed(0)
    save(LacosBloomModel(config(57344, HIDDEN, 1)), tmp_path / "model", tmp_path / "tokenizer")
    tokenizer = compose.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    words = ["Gitarristin", "Aktenordner", "der", "auszuwählen", "guitarrista"]
    langs = ["de"] * 4 + ["es", "de"]  # Spanish is left out
    table = {"text": [*words, "ein ganzer Satz"], "lang": langs, "source": ["wordfreq"] * 5 + ["tatoeba"]}
    pq.write_table(pa.table(table), tmp_path / "texts.parquet")
    found, langs, ranks = compose.words_of(tmp_path, tokenizer)
    assert found == ["Gitarristin", "Aktenordner", "auszuwählen"]
    assert langs.tolist() == ["de"] * 3
    assert ranks.tolist() == [0, 1, 3]

    random = np.random.default_rng(0)
    said = random.standard_normal((57344, 8)).astype(np.float32)
    np.savez(tmp_path / "token-said-57344.npz", vectors=said)
    np.savez(tmp_path / "word-said-3.npz", words=np.array(sorted(found)), vectors=said[5000:5003])
    rarity = np.full((len(compose.KNOWN), 57344), 9.5, np.float16)
    pieces = tokenizer(found, add_special_tokens=False)["input_ids"]
    often = pieces[0][0]
    rarity[compose.KNOWN.index("fr"), often] = 2.0
    np.savez(tmp_path / "rarity.npz", langs=np.array(compose.KNOWN), rarity=rarity)
    arguments = ["compose.py", tmp_path / "model", tmp_path / "output", "--work-dir", tmp_path]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    compose.main()
    before, after = map(float, capsys.readouterr().out.split(" words, from ")[1].split(" of ")[0].split(" to "))
    assert after > before + 0.1
    old, new = (LacosBloomModel.from_pretrained(tmp_path / name).state_dict() for name in ("model", "output"))
    moved = (old["word_embeddings.weight"] != new["word_embeddings.weight"]).any(1).nonzero()[:, 0].tolist()
    assert set(moved) == {token for row in pieces for token in row} - {often}
    assert torch.equal(old["word_embeddings.weight"][:, -2:], new["word_embeddings.weight"][:, -2:])
    lengths = [state["word_embeddings.weight"].norm(dim=1) for state in (old, new)]
    assert torch.allclose(*lengths, rtol=1e-5)
    assert all(torch.equal(old[key], new[key]) for key in old if key != "word_embeddings.weight")
