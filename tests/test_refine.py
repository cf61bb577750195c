"""`recipes/bloom-mini/refine.py`: near sentences in the teacher's order, all others where they were."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import refine
from recipe_text import COUNT
from student import config, save

from lacos_st.bloom import LacosBloomModel

HIDDEN = 32


@pytest.fixture(scope="module")
def start(work_dir, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start")
    save(LacosBloomModel(config(57344, HIDDEN, 1)), path, work_dir / "tokenizer")
    return path


@pytest.fixture
def text(work_dir, start):
    return refine.Text(work_dir, LacosBloomModel.from_pretrained(start).eval())


def test_nearest_are_those_of_a_whole_sort():
    vectors = normalize(torch.randn(2100, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = vectors.double() @ vectors.double().T
    cosines.fill_diagonal_(-2)
    wanted = cosines.sort(descending=True).values[:, :3]
    found = refine.nearest(vectors, 3)
    assert torch.allclose(cosines.gather(1, torch.from_numpy(found)), wanted, atol=1e-6)


def test_wanted_cosines_are_the_teachers_brought_to_the_students_scale(work_dir, text):
    language = text.languages(["es"], 200)["es"]
    at = np.arange(40)
    said = np.load(work_dir / "second.npy")[language.rows].astype(np.float64)  # the teacher's row i is the text's
    before = language.before.double().numpy()
    common = said.mean(0) @ said.mean(0)
    own = (said[at] @ said[at].T - common) / (1 - common)
    a, b = language.scale
    wanted = 0.75 * (a * own + b) + 0.25 * before[at] @ before[at].T
    assert np.abs(language.wanted(at).numpy() - wanted).max() < 1e-3


def test_the_scale_leaves_means_as_they_were(text):
    language = text.languages(["es"], 500)["es"]
    a, b = language.scale
    said, before = language.said.numpy(), language.before.numpy()
    random = np.random.default_rng(1)
    first, other = random.integers(0, len(said), (2, 50_000))
    own = ((said[first] * said[other]).sum(1).mean() - language.common) / (1 - language.common)
    assert abs(a * own + b - (before[first] * before[other]).sum(1).mean()) < 0.01


def test_words_and_unread_sentences_are_left_out(work_dir, text):
    assert len(text.languages(["es"], 10_000)["es"].rows) == COUNT  # its single words are not among them
    with pytest.raises(SystemExit, match="0 sentences of 'tr'"):
        text.languages(["tr"], 100)


def test_held_are_english_or_what_is_not_taught(text):
    assert set(text.lang[text.held(["es"], True, 100).rows]) == {"en"}
    assert set(text.lang[text.held(["es"], False, 10_000).rows]) == {"de"}


def test_a_run_is_a_sentence_and_its_neighbours():
    near = np.arange(100)[:, None] + np.arange(1, 16)
    reach = np.cumsum(np.full(100, 0.01))
    runs = refine.draw(reach, near, 50, np.random.default_rng(0)).reshape(50, refine.RUN)
    assert ((runs[:, 1:] > runs[:, :1]) & (runs[:, 1:] <= runs[:, :1] + 15)).all()
    assert all(len({*run}) == refine.RUN for run in runs)


def test_a_student_that_says_what_is_wanted_has_no_loss(text):
    language = text.languages(["es"], 100)["es"]
    at = np.arange(8)
    same = language._replace(said=language.before, common=0.0, scale=(1.0, 0.0), english=language.before)
    assert all(float(loss) < 1e-6 for loss in refine.taught_loss(language.before[at], same, at))
    assert float(refine.held_loss(language.before, language.before)) < 1e-6
    moved = normalize(language.before + 0.1 * torch.randn_like(language.before), dim=1)
    assert float(refine.held_loss(moved, language.before)) > 1e-3


def run(monkeypatch, *arguments):
    monkeypatch.setattr(refine, "FIRST", ["es"])
    monkeypatch.setattr(refine, "THEN", ["es"])  # German is held
    monkeypatch.setattr(sys, "argv", ["refine.py", *map(str, arguments)])
    refine.main()


def test_training_goes_on_as_if_it_had_not_been_stopped(work_dir, start, tmp_path, monkeypatch):
    common = ["--work-dir", work_dir, "--steps", 6, "--save-every", 3]
    whole, stopped, after = tmp_path / "whole", tmp_path / "stopped", tmp_path / "after"
    run(monkeypatch, start, whole, *common)
    saved = refine.save_state

    def stop(path, model, optimizer, step):
        saved(path, model, optimizer, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(refine, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, start, stopped, *common)
    monkeypatch.setattr(refine, "save_state", saved)
    run(monkeypatch, start, stopped, *common)
    found = [LacosBloomModel.from_pretrained(path).state_dict() for path in (whole, stopped)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    run(monkeypatch, start, after, *common, "--share", 1)
    before, mean, trained = (LacosBloomModel.from_pretrained(path).state_dict() for path in (start, whole, after))
    table, layer = "word_embeddings.weight", "h.0.mlp.dense_h_to_4h.weight"
    assert torch.equal(mean[table], trained[table])
    assert not torch.allclose(before[table], trained[table])
    assert torch.allclose(mean[layer], before[layer] + 0.8 * (trained[layer] - before[layer]), atol=1e-6)
    assert not torch.allclose(before[layer], trained[layer])
