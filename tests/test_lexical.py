"""The sketch of a text's tokens: against its definition, in any batch, saved, and behind a model's meaning."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORPUS
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from lacos_st import LacosPooling, LacosSentenceTransformer, LacosTransformer
from lacos_st.artifact import SKETCH, AdapterCheckpoint
from lacos_st.errors import LacosError
from lacos_st.fingerprint import fingerprint
from lacos_st.lexical import LexicalSketch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import lexical as recipe

SHARES = {"en": 0.1, "fr": 0.4, "ky": 0.7}
PRIORS = {"en": 1.0, "fr": 0.0, "ky": -2.0}
RAREST, VOCABULARY = 9.5, 40
TEXTS = list(CORPUS)[:6]


def levels():
    """Random ones, many of them "not in this language"."""
    random = np.random.default_rng(0)
    found = random.integers(0, 16, (3, VOCABULARY))
    found[random.random(found.shape) < 0.4] = 15
    return torch.from_numpy(found.astype(np.uint8))


def make(dimension=16):
    return LexicalSketch.from_levels(SHARES, PRIORS, levels(), RAREST, 8, dimension)


def padded(texts):
    width = max(map(len, texts))
    ids = torch.tensor([text + [3] * (width - len(text)) for text in texts])
    mask = (torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def by_definition(text, dimension):
    """(sketch of unit length, share, weight of each token) in fp64."""
    tokens = sorted(set(text))
    rarity = levels().double().numpy()[:, tokens] * RAREST / 15
    log = np.array(list(PRIORS.values())) - rarity.sum(1) - 4.0 * (rarity == RAREST).sum(1)
    languages = np.exp(log - log.max())
    languages /= languages.sum()
    loud = dict(zip(tokens, languages @ rarity, strict=True))
    sketch = np.zeros(dimension)
    for token, weight in loud.items():
        mixed = (token + 1) * 2654435761 % 2**32
        sketch[mixed // 256 % dimension] += -weight if mixed >> 31 else weight
    return sketch / max(np.linalg.norm(sketch), 1e-12), languages @ list(SHARES.values()), loud


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5))
def test_is_what_its_definition_says_alone_padded_and_packed(texts):
    sketch = make().sketch
    vectors, shares = sketch(padded(texts))
    bounds = torch.tensor(np.cumsum([0, *map(len, texts)]))
    packed = {"input_ids": torch.tensor([[token for text in texts for token in text]]), "cu_seq_lens_q": bounds}
    alone = [sketch(padded([text])) for text in texts]
    for again in (sketch(packed), [torch.cat(part) for part in zip(*alone, strict=True)]):
        torch.testing.assert_close(again[0], vectors)
        torch.testing.assert_close(again[1], shares)
    for text, vector, share in zip(texts, vectors, shares, strict=True):
        expected, part, _ = by_definition(text, 16)
        np.testing.assert_allclose(vector, expected, atol=2e-5)
        assert float(share) == pytest.approx(part if np.abs(expected).max() else 0, abs=1e-5)


def test_keeps_cosines_of_what_it_counts():
    texts = [[5, 6, 7, 8, 20], [5, 6, 9, 21, 22], [30, 31, 32, 8, 20]]
    vectors, _ = make(4096).sketch(padded(texts))
    for i, a in enumerate(by_definition(text, 8)[2] for text in texts):
        for j, b in enumerate(by_definition(text, 8)[2] for text in texts):
            product = sum(a[token] * b[token] for token in a.keys() & b.keys())
            cosine = product / np.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
            assert float(vectors[i] @ vectors[j]) == pytest.approx(cosine, abs=0.06)


def test_a_prompt_that_the_pooling_leaves_out_is_not_counted():
    both = padded([[9, 10, 5, 6], [5, 6]])
    features = {**both, "token_embeddings": torch.randn(2, 4, 8), "prompt_length": torch.tensor([2, 0])}
    vectors, shares = make().sketch(LacosPooling(8, "mean", include_prompt=False)(dict(features)))
    torch.testing.assert_close(vectors[0], vectors[1])
    assert shares[0] == shares[1]
    counted, _ = make().sketch(LacosPooling(8, "mean")(dict(features)))
    assert not torch.allclose(counted[0], counted[1])


def test_a_text_that_says_nothing_has_no_share():
    found = torch.zeros(1, 4, dtype=torch.uint8)  # every token is in every sentence
    sketch = LexicalSketch.from_levels({"en": 0.5}, {"en": 0.0}, found, 9.0, 8, 8)
    vectors, shares = sketch.sketch(padded([[1, 2]]))
    assert not vectors.any()
    assert shares.tolist() == [0.0]


def test_it_mixes_cosines_by_the_share():
    features = padded([[5, 6, 7], [8, 8, 9, 10, 11, 5]])
    meaning = torch.randn(2, 8, requires_grad=True)
    embeddings = make()({**features, "sentence_embedding": meaning})["sentence_embedding"]
    assert embeddings.shape == (2, make().get_embedding_dimension()) == (2, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    vectors, shares = make().sketch(features)
    expected = torch.cosine_similarity(meaning[0], meaning[1], dim=0) * (1 - shares).prod().sqrt()
    expected = expected + vectors[0] @ vectors[1] * shares.prod().sqrt()
    torch.testing.assert_close(embeddings[0] @ embeddings[1], expected)
    embeddings[0, 0].backward()
    assert meaning.grad[0].any()
    assert not meaning.grad[1].any()


def test_saved_and_read_it_is_the_same(tmp_path):
    sketch = make()
    sketch.save(str(tmp_path))
    again = LexicalSketch.load(str(tmp_path))
    assert (again.languages, again.meaning, again.dimension) == (["en", "fr", "ky"], 8, 16)
    state = sketch.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


def test_stays_exact_in_a_model_that_is_cast_and_under_autocast():
    assert make().bfloat16().shares.dtype == torch.float32
    vectors, shares = make().sketch(padded([[5, 6, 7], [30, 31]]))
    with torch.autocast("cpu", torch.bfloat16):
        again = make().sketch(padded([[5, 6, 7], [30, 31]]))
    assert torch.equal(again[0], vectors)
    assert torch.equal(again[1], shares)


def test_other_processes_can_be_sent_its_buffers():
    """Gloo and NCCL know no 16-bit integers, and DistributedDataParallel sends every buffer."""
    assert {buffer.dtype for buffer in make().buffers()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {**SHARES, "fr": 1.0}}, "'fr': 1.0"),
        ({"priors": {"en": 0.0}}, "priors of"),
        ({"levels": levels()[:2]}, "levels"),
        ({"levels": levels() + 1}, "A level is 16"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"shares": SHARES, "priors": PRIORS, "levels": levels(), "rarest": RAREST, "meaning": 8}
    with pytest.raises(ValueError, match=message):
        LexicalSketch.from_levels(**{**given, **change})


@pytest.fixture
def model(tiny_bloom):
    found = torch.randint(0, 16, (2, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sketch = LexicalSketch.from_levels({"en": 0.2, "fr": 0.4}, {"en": 0.0, "fr": 0.0}, found, 9.0, 64, 32)
    return LacosSentenceTransformer(modules=[LacosTransformer(str(tiny_bloom)), LacosPooling(64), sketch])


def test_stock_classes_read_the_meaning_of_a_model_that_has_one(model, tmp_path):
    texts = [*TEXTS, ""]
    before, name = model.encode(texts), fingerprint(model)
    assert before.shape == (len(texts), 96)
    model.save(str(tmp_path / "model"))
    again = LacosSentenceTransformer(tmp_path / "model")
    np.testing.assert_allclose(again.encode(texts), before, atol=1e-6)
    assert fingerprint(again) == name
    again[-1].shares += 0.1
    assert fingerprint(again) != name
    meaning = SentenceTransformer(str(tmp_path / "model")).encode(texts, normalize_embeddings=True)
    assert meaning.shape == (len(texts), 64)
    ours = again.encode(texts, truncate_dim=64, normalize_embeddings=True)
    assert (meaning * ours).sum(1).min() > 0.999


def test_a_model_without_one_that_is_saved_over_it_leaves_none(model, tmp_path):
    model.save(str(tmp_path / "model"))
    assert (tmp_path / "model" / SKETCH / "model.safetensors").is_file()
    LacosSentenceTransformer(modules=list(model)[:2]).save(str(tmp_path / "model"))
    assert not (tmp_path / "model" / SKETCH).exists()
    assert LacosSentenceTransformer(tmp_path / "model").get_embedding_dimension() == 64


def test_the_record_says_whether_there_is_one(model, tmp_path):
    model.save(str(tmp_path / "with"))
    LacosSentenceTransformer(modules=list(model)[:2]).save(str(tmp_path / "without"))
    shutil.move(tmp_path / "with" / SKETCH, tmp_path / "without" / SKETCH)
    assert LacosSentenceTransformer(tmp_path / "without").get_embedding_dimension() == 64  # left over on a Hub
    with pytest.raises(LacosError, match=f"sketch of words .{SKETCH}/., which cannot be found"):
        LacosSentenceTransformer(tmp_path / "with")


def test_the_sketch_of_another_model_is_refused(model, tmp_path):
    model.save(str(tmp_path / "model"))
    make().save(str(tmp_path / "model" / SKETCH))
    with pytest.raises(LacosError, match="for embeddings of 8 and 40 tokens, and the model has 64 and"):
        LacosSentenceTransformer(tmp_path / "model")


def test_it_is_saved_as_the_last_module_only(model, tmp_path):
    with pytest.raises(LacosError, match="last module"):
        LacosSentenceTransformer(modules=[*model, Normalize()]).save(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_stock_pooling_leaves_its_prompt_out_here_too(tiny_bloom, model):
    modules = [LacosTransformer(str(tiny_bloom)), Pooling(64, "mean", include_prompt=False), model[-1]]
    other = LacosSentenceTransformer(modules=modules, prompts={"query": "search: "})
    assert type(other[1]) is LacosPooling
    sketch = other.encode(TEXTS, prompt_name="query")[:, 64:]
    np.testing.assert_allclose(sketch, other.encode(TEXTS)[:, 64:], atol=1e-6)


def test_a_checkpoint_has_it(model, tmp_path):
    model.add_lora(rank=2)
    model.save(str(tmp_path / "checkpoint-1"))
    state = AdapterCheckpoint(tmp_path / "checkpoint-1").state_dict()
    assert {key for key in state if key.startswith("2.")} == {f"2.{name}" for name in model[-1].state_dict()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert [key for key in missing if not key.startswith("0.")] == []


def test_the_embedded_models_know_their_languages():
    model = LacosSentenceTransformer("lacos-bloom")
    sketch = model[-1]
    told = dict(zip(sketch.languages, sketch.shares.tolist(), strict=True))
    texts = {
        "ky": "Бул жерде көп адам бар жана алар сүйлөшүп жатышат.",
        "en": "There are many people here and they are talking.",
        "hi": "यहाँ बहुत से लोग हैं और वे बात कर रहे हैं।",
        "fr": "Il y a beaucoup de gens ici et ils parlent.",
    }
    shares = sketch.sketch(model.preprocess(list(texts.values())))[1].tolist()
    for lang, share in zip(texts, shares, strict=True):
        assert share == pytest.approx(told[lang], abs=0.05), lang


def test_the_embedded_models_tell_biology_from_other_english():
    model = LacosSentenceTransformer("lacos-bloom")
    sketch = model[-1]
    told = dict(zip(sketch.languages, sketch.shares.tolist(), strict=True))
    biology = (
        "The receptor kinase phosphorylates transcription factors, which regulates gene expression in tumor cells."
    )
    others = ["The act of mixing one thing with another.", "A cell phone is on it.", "The bulb has no battery."]
    shares = sketch.sketch(model.preprocess([biology, *others]))[1].tolist()
    assert shares == pytest.approx([told["en-biology"], *[told["en"]] * 3], abs=0.05)


def test_the_recipe_counts_languages_that_it_has(work_dir):
    sketch = recipe.count(work_dir)  # no biology among them
    assert sketch.languages == ["de", "en", "es"]
    assert sketch.shares.tolist() == pytest.approx([recipe.SHARE[lang] for lang in sketch.languages])
    assert sketch.priors.argmax() == 1


def test_the_recipe_counts_in_levels():
    rarity = np.array([[0.0, 9.9, 9.0], [6.7, 4.9, 6.3]], np.float16)
    found, rarest = recipe.levels(["en", "is"], rarity)
    assert rarest == pytest.approx(9.9, abs=0.01)
    assert found.tolist() == [[0, 15, 15], [15, 7, 15]]
    assert recipe.levels(["en", "kk"], rarity)[0].tolist() == [[0, 15, 15], [10, 7, 10]]
