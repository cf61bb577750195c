"""`recipes/bloom-mini`: what batches hold, and that training from them is the same every time."""

import sys

import distil
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from batches import EOS, NEIGHBOURS, SINGLES, Batches
from corpus import tokenize
from spelling import CODES, Characters
from targets import LEXICAL, SHARE, said_of, turn
from teach import words_of
from transformers import AutoTokenizer

HIDDEN = 32


@pytest.fixture(scope="module")
def batches(work_dir):
    return Batches(work_dir, HIDDEN, singles=0.1)


def test_a_batch_depends_on_seed_and_number_alone(work_dir, batches):
    first, again = batches.batch(64, 3, 7), Batches(work_dir, HIDDEN, singles=0.1).batch(64, 3, 7)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.targets, batches.batch(64, 3, 8).targets)


def test_neighbours_speak_the_same_language_and_say_something_else(work_dir, batches):
    pool = batches.pools["de"]
    assert np.isin(batches.near[pool], pool).all()
    assert (batches.row[batches.near[pool]] != batches.row[pool][:, None]).all()
    targets = batches.targets(pool)
    near = batches.targets(batches.near[pool].ravel().astype(np.int64)).view(len(pool), NEIGHBOURS, -1)
    assert (near @ targets[:, :, None]).mean() > (targets @ targets.T).mean() + 0.2
    assert SINGLES in batches.pools
    assert not np.isin(batches.pools["es"], batches.pools[SINGLES]).any()


def by_both(work_dir, batches, rows):
    """(rows, hidden) what the teachers say of rows, and (rows, rows) cosines, in fp64."""
    table = pq.read_table(work_dir / "texts.parquet")
    kinds = [*zip(table["lang"].to_numpy(), table["source"].to_numpy(), strict=True)]  # words lie elsewhere
    second = np.load(work_dir / "second.npy").astype(np.float64)
    means = {kind: second[[own == kind for own in kinds]].mean(0) for kind in {*kinds}}
    vectors, place = said_of(work_dir, HIDDEN)
    first = np.where(place[rows, None] >= 0, vectors[place[rows]].astype(np.float64), 0)
    mean = np.stack([means[kinds[row]] for row in rows])
    own = (second[rows] @ second[rows].T - mean @ mean.T) / (1 - mean @ mean.T)
    known = place[rows] >= 0
    share = 1 - (1 - SHARE) * np.outer(known, known)
    centred = second[rows] - mean
    centred = centred / np.linalg.norm(centred, axis=1, keepdims=True) @ batches.second.turn.double().numpy()
    said = first + centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return said / np.linalg.norm(said, axis=1, keepdims=True), (1 - share) * (first @ first.T) + share * own


def test_targets_and_cosines_are_those_of_what_they_are_made_of(work_dir, batches):
    rows, sizes = batches.draw(64, 0, 0)
    batch = batches.batch(64, 0, 0)
    assert sum(sizes) == len(rows) == len(batch.targets)
    table = pq.read_table(work_dir / "texts.parquet")
    texts, langs = table["text"].to_pylist(), table["lang"].to_numpy()
    ids, offsets = tokenize(work_dir)
    said, own = by_both(work_dir, batches, rows)
    every = Characters(work_dir / "idf.npz", table["text"].combine_chunks(), langs, np.ones(len(langs), bool))
    characters = every([texts[row] for row in rows], langs[rows]).astype(np.float64)
    tokens = np.zeros((len(rows), CODES))
    signs = batches.signs.numpy().astype(np.float64)
    for i, row in enumerate(rows):
        for token in ids[offsets[row] : offsets[row + 1]]:
            if token != EOS:
                tokens[i] += signs[token] * float(batches.rarity[batches.known.index(langs[row]), token])
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    spelt = np.concatenate([unit(characters), unit(tokens)], 1) / 2**0.5
    share = np.array([LEXICAL.get(lang, LEXICAL[None]) for lang in langs[rows]])[:, None]
    wanted = unit((1 - share) ** 0.5 * said + share**0.5 * unit(spelt @ batches.projection.numpy()))
    assert np.abs(batch.targets.numpy() - wanted).max() < 1e-3
    group = np.repeat(np.arange(len(sizes)), sizes)
    cosines = own * np.sqrt((1 - share) * (1 - share).T)
    cosines += (group[:, None] == group) * ((share**0.5 * spelt) @ (share**0.5 * spelt).T)
    assert np.abs(batch.cosines.numpy() - cosines).max() < 2e-3


def test_the_second_teacher_is_turned_and_not_bent(batches):
    turned = batches.second.turn.double().numpy()
    assert np.abs(turned[:, :-2].T @ turned[:, :-2] - np.eye(HIDDEN - 2)).max() < 1e-5
    assert (turned[:, -2:] == 0).all()


def test_where_only_the_second_teacher_speaks_it_is_heeded_alone(work_dir, batches):
    rows = np.arange(8)
    said = torch.from_numpy(said_of(work_dir, HIDDEN)[0][:8].astype(np.float32))
    said[:4] = 0
    alone = batches.second.cosines(rows, torch.zeros_like(said))
    cosines = batches.second.cosines(rows, said)
    assert torch.equal(cosines[:4], alone[:4])
    assert not torch.allclose(cosines[4:, 4:], alone[4:, 4:])


def test_words_are_the_teachers_and_lie_where_the_tokens_are(work_dir, batches):
    rows, sizes = batches.draw(64, 0, 0)
    batch = batches.batch(64, 0, 0)
    texts = pq.read_table(work_dir / "texts.parquet")["text"].to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    into = turn(work_dir, HIDDEN)
    states, starts = np.load(work_dir / "words.npy").astype(np.float32), np.load(work_dir / "starts.npy")
    words, places = [], []
    for row in rows[: sizes[0]]:
        sentence = row // 3  # of `english.npy`
        number = words_of(texts[row], tokenizer(texts[row], return_offsets_mapping=True)["offset_mapping"])
        places.append(np.where(number >= 0, number + sum(map(len, words)), -1))
        words.append(states[starts[sentence] : starts[sentence + 1]] @ into)
    words = np.concatenate(words)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    assert np.abs(batch.words.numpy() - words).max() < 1e-3
    assert (batch.places.numpy() == np.concatenate(places)).all()


def test_only_other_languages_are_told_how_loudly_to_speak(batches):
    batch = batches.batch(64, 0, 0)
    english, single = (int(batch.bounds[count]) for count in np.cumsum(batch.sizes)[:2])
    assert batch.sizes[1] > 0
    assert (batch.loudness[:single] == 0).all()
    assert (batch.loudness[single:] > 0).all()
    assert english < single


def test_the_loss_is_a_number_without_single_words(work_dir):
    batch = Batches(work_dir, HIDDEN).batch(64, 0, 0)
    assert batch.sizes[1] == 0
    assert distil.loss_of(torch.randn(len(batch.targets), HIDDEN), batch, 5.0, 50.0).isfinite()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["distil.py", *map(str, arguments)])
    distil.main()


def test_training_goes_on_as_if_it_had_not_been_stopped(work_dir, tmp_path, monkeypatch):
    size = ["--work-dir", work_dir, "--hidden", HIDDEN, "--batch", 32, "--device", "cpu", "--words", 1, "--loudness", 1]
    run(monkeypatch, "static", *size, "--steps", 3, "--output", tmp_path / "static")
    deep = [
        "deep",
        *size,
        "--start",
        tmp_path / "static",
        "--layers",
        1,
        "--keep",
        0.5,
        "--steps",
        6,
        "--save-every",
        3,
    ]
    run(monkeypatch, *deep, "--output", tmp_path / "whole")

    class Stopped(Exception):
        pass

    saved = distil.save_state

    def stop(path, model, optimizer, step):
        saved(path, model, optimizer, step)
        if step == 3:
            raise Stopped

    monkeypatch.setattr(distil, "save_state", stop)
    with pytest.raises(Stopped):
        run(monkeypatch, *deep, "--output", tmp_path / "stopped")
    monkeypatch.setattr(distil, "save_state", saved)
    run(monkeypatch, *deep, "--output", tmp_path / "stopped")
    whole, stopped = (
        distil.LacosBloomModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    start = distil.LacosBloomModel.from_pretrained(tmp_path / "static").state_dict()
    assert not torch.equal(whole["word_embeddings.weight"], start["word_embeddings.weight"])
