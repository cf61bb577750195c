"""`recipes/bloom-mini/refine.py`: near sentences in the teacher's order, or in the mean of two students'."""

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
def starts(work_dir, tmp_path_factory):
    """Two students."""
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp("start"))
        save(LacosBloomModel(config(57344, HIDDEN, 1)), paths[-1], work_dir / "tokenizer")
    return paths


@pytest.fixture(autouse=True)
def one_language_first(monkeypatch):
    monkeypatch.setattr(refine, "FIRST", ["es"])


@pytest.fixture
def text(work_dir, starts):
    return refine.Text(work_dir, [LacosBloomModel.from_pretrained(path).eval() for path in starts])


def test_nearest_are_those_of_a_whole_sort():
    vectors = normalize(torch.randn(2100, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = vectors.double() @ vectors.double().T
    cosines.fill_diagonal_(-2)
    wanted = cosines.sort(descending=True).values[:, :3]
    found = refine.nearest(vectors, 3)
    assert torch.allclose(cosines.gather(1, torch.from_numpy(found)), wanted, atol=1e-6)


def test_what_was_said_before_is_the_mean_of_the_students(text):
    rows = np.arange(60, 20, -1)
    both, mean = text.before(rows)
    alone = [torch.cat([refine.embeddings(student, *text.flat(rows[i : i + 1])) for i in range(len(rows))])
             for student in text.students]  # fmt: skip
    cosines = sum(said @ said.T for said in alone) / 2
    assert torch.allclose(both @ both.T, cosines, atol=1e-5)
    assert torch.allclose(mean, normalize(alone[0] + alone[1], dim=1), atol=1e-5)


def test_wanted_cosines_are_the_teachers_brought_to_the_students_scale(work_dir, text):
    (language,) = text.first(200)
    at = np.arange(40)
    said = np.load(work_dir / "second.npy")[language.rows].astype(np.float64)  # the teacher's row i is the text's
    before = language.before.double().numpy()
    common = said.mean(0) @ said.mean(0)
    own = (said[at] @ said[at].T - common) / (1 - common)
    a, d = language.scale
    wanted = 0.75 * (a * own + d) + 0.25 * before[at] @ before[at].T
    assert np.abs(language.wanted(at).numpy() - wanted).max() < 1e-3


def test_the_scale_leaves_means_as_they_were(text):
    (language,) = text.first(500)
    a, d = language.scale
    said, before = language.said.numpy(), language.before.numpy()
    random = np.random.default_rng(1)
    first, other = random.integers(0, len(said), (2, 50_000))
    own = ((said[first] * said[other]).sum(1).mean() - language.common) / (1 - language.common)
    assert abs(a * own + d - (before[first] * before[other]).sum(1).mean()) < 0.01


def test_a_first_sentence_belongs_to_its_english(text):
    (language,) = text.first(50)
    assert torch.allclose(language.place, text.before(text.english[language.rows])[1], atol=1e-5)


def test_words_and_unread_sentences_are_left_out(text, monkeypatch):
    (language,) = text.first(10_000)
    assert len(language.rows) == COUNT  # its single words are not among them
    monkeypatch.setattr(refine, "FIRST", ["tr"])
    with pytest.raises(SystemExit, match="0 sentences of 'tr'"):
        text.first(100)


def test_others_keep_the_students_order(text):
    others = text.others()
    assert [str(text.lang[language.rows[0]]) for language in others] == ["de", "en", "en"]
    at = np.arange(20)
    assert torch.equal(others[0].wanted(at), others[0].before[at] @ others[0].before[at].T)


def test_held_are_english_or_what_is_not_first(text):
    assert set(text.lang[text.held(True, 100).rows]) == {"en"}
    assert set(text.lang[text.held(False, 10_000).rows]) == {"de"}


def test_a_run_is_a_sentence_and_its_neighbours():
    near = np.arange(100)[:, None] + np.arange(1, 16)
    random = np.random.default_rng(0)
    first = refine.draw(np.arange(1, 101), 50, random)
    runs = refine.runs_of(first, near[first], random).reshape(50, refine.RUN)
    assert (runs[:, 0] == first).all()
    assert ((runs[:, 1:] > runs[:, :1]) & (runs[:, 1:] <= runs[:, :1] + 15)).all()
    assert all(len({*run}) == refine.RUN for run in runs)


def test_a_source_is_drawn_by_the_root_of_its_sentences():
    share = np.diff(refine.reach_of(np.array(["one"] * 90 + ["other"] * 10)), prepend=0)
    assert np.isclose(share[:90].sum() / share[90:].sum(), 3)


def test_a_student_that_says_what_is_wanted_has_no_loss(text):
    language = text.others()[0]
    said = normalize(torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(0)), dim=1)
    same = language._replace(before=said, place=said)
    assert all(float(loss) < 1e-6 for loss in refine.order_loss(said, same, np.arange(8)))
    assert float(refine.held_loss(said, said, said)) < 1e-6
    moved = normalize(said + 0.1 * torch.randn_like(said), dim=1)
    assert float(refine.held_loss(moved, said, said)) > 1e-3


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["refine.py", *map(str, arguments)])
    refine.main()


def test_training_goes_on_as_if_it_had_not_been_stopped(work_dir, starts, tmp_path, monkeypatch):
    start, beside = starts
    common = ["--beside", beside, "--work-dir", work_dir, "--steps", 6, "--save-every", 3]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
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
    found = [LacosBloomModel.from_pretrained(path).state_dict() for path in (start, whole, stopped)]
    assert all(torch.equal(found[1][name], found[2][name]) for name in found[0])
    layer = "h.0.mlp.dense_h_to_4h.weight"
    assert not torch.allclose(found[0][layer], found[1][layer])
