import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from lacos_st.training.losses import (
    CachedMaskedMultipleNegativesRankingLoss,
    MaskedMultipleNegativesRankingLoss,
    identity,
    text_hashes,
)

OPTIONS = [
    {},
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    {"hardness_mode": "in_batch_negatives", "hardness_strength": 5.0},
    {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
    {"hardness_mode": "all_negatives", "hardness_strength": 2.0, "scale": 7.0},
]


class Lookup(torch.nn.Module):
    """A model that embeds a text by its first token: enough for a loss, and exact."""

    def __init__(self, vocabulary=64, dimension=8):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(vocabulary, dimension, generator=generator))

    def forward(self, features):
        return {"sentence_embedding": self.table[features["input_ids"][:, 0]]}

    def __getitem__(self, index):
        return self

    def get_embedding_dimension(self):
        return self.table.shape[1]


def columns(*texts):
    return [
        {"input_ids": torch.tensor(ids)[:, None], "attention_mask": torch.ones(len(ids), 1, dtype=torch.long)}
        for ids in texts
    ]


def value_and_gradient(loss, features):
    loss.model.zero_grad()
    value = loss(features, torch.zeros(0))
    value.backward()
    return value.item(), loss.model.table.grad.clone()


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_st_when_nothing_is_masked(options):
    features = columns([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])
    ours = value_and_gradient(MaskedMultipleNegativesRankingLoss(Lookup(), **options), features)
    stock = value_and_gradient(MultipleNegativesRankingLoss(Lookup(), **options), features)
    assert ours[0] == pytest.approx(stock[0], abs=1e-6)
    torch.testing.assert_close(ours[1], stock[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("margin", [None, 0.0, 0.1])
@pytest.mark.parametrize("options", OPTIONS)
def test_cached_equals_plain(options, margin):
    # Premises 1 and 2 repeat; 20 is both a positive and a hard negative.
    features = columns([1, 1, 2, 2, 3, 4], [20, 21, 22, 23, 24, 25], [30, 20, 32, 33, 34, 35])
    plain = MaskedMultipleNegativesRankingLoss(Lookup(), mask_margin=margin, **options)
    cached = CachedMaskedMultipleNegativesRankingLoss(Lookup(), mask_margin=margin, mini_batch_size=2, **options)
    expected, actual = value_and_gradient(plain, features), value_and_gradient(cached, features)
    assert actual[0] == pytest.approx(expected[0], abs=1e-5)
    torch.testing.assert_close(actual[1], expected[1], atol=1e-5, rtol=1e-4)


def test_a_duplicated_premise_never_pushes_its_own_paraphrase_away():
    features = columns([1, 1], [5, 6])  # 5 and 6 follow from the same premise: nothing here is a negative
    value, gradient = value_and_gradient(MaskedMultipleNegativesRankingLoss(Lookup()), features)
    assert value == 0
    assert gradient.abs().max() == 0
    value, gradient = value_and_gradient(MultipleNegativesRankingLoss(Lookup()), features)
    assert gradient[6].abs().max() > 0.01  # ST's pushes 6 away from 1 for the sake of (1, 5)


def test_masks_exactly_what_the_head_of_the_file_says():
    seen = {}

    def spy(a, b):
        seen["shape"] = a.shape, b.shape
        return a @ b.T

    loss = MaskedMultipleNegativesRankingLoss(Lookup(), similarity_fct=spy)
    features = columns([1, 1, 2, 5], [5, 6, 7, 8], [9, 5, 1, 9])
    loss._identities = [identity(column) for column in features]
    tagged = loss._tagged([loss.model(column)["sentence_embedding"] for column in features], spy)
    scores = loss._masked(spy)(tagged[0], torch.cat(tagged[1:]))
    expected = torch.tensor(
        [
            # positives 5 6 7 8      hard negatives 9 5 1 9
            [0, 1, 0, 1, 0, 1, 1, 0],  # (1, 5): 6 follows from 1; 8 from 5; 5 and 1 are its own pair
            [1, 0, 0, 0, 0, 0, 1, 0],  # (1, 6)
            [0, 0, 0, 0, 0, 0, 0, 0],  # (2, 7)
            [1, 0, 0, 0, 0, 1, 0, 0],  # (5, 8)
        ]
    ).bool()
    assert torch.equal(scores.isinf(), expected)
    assert seen["shape"][0][1] == 8  # the user's function never sees the tags


def test_a_negative_above_the_positive_by_the_margin_is_masked():
    model = Lookup(dimension=2)
    with torch.no_grad():
        model.table[1], model.table[5] = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])  # positive at 0.6
        model.table[2], model.table[6] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
        model.table[9], model.table[10] = (
            torch.tensor([0.8, 0.6]),
            torch.tensor([0.0, -1.0]),
        )  # negative at 0.8
    features = columns([1, 2], [5, 6], [9, 10])
    gradient = {
        margin: value_and_gradient(MaskedMultipleNegativesRankingLoss(model, mask_margin=margin), features)[1]
        for margin in (None, 0.1, 0.3)
    }
    assert gradient[None][9].norm() > 0
    assert gradient[0.1][9].norm() < gradient[None][9].norm() / 10  # masked for row 0, distant from row 1
    torch.testing.assert_close(gradient[0.3], gradient[None])


def test_switched_off_it_is_stock():
    features = columns([1, 1, 2], [5, 6, 1])
    ours = value_and_gradient(MaskedMultipleNegativesRankingLoss(Lookup(), mask_duplicates=False), features)
    stock = value_and_gradient(MultipleNegativesRankingLoss(Lookup()), features)
    assert ours[0] == pytest.approx(stock[0], abs=1e-6)
    torch.testing.assert_close(ours[1], stock[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_called_without_texts_it_is_stock(options):
    features = columns([1, 1, 2, 3], [5, 6, 1, 5], [9, 10, 5, 1])
    generator = torch.Generator().manual_seed(1)
    embeddings = [torch.randn(3, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    plain, cached = (
        MaskedMultipleNegativesRankingLoss(Lookup(), **options),
        CachedMaskedMultipleNegativesRankingLoss(Lookup(), mini_batch_size=2, **options),
    )
    expected = MultipleNegativesRankingLoss(Lookup(), **options).compute_loss_from_embeddings(embeddings, None)
    for _ in range(2):  # before any batch, and after one of another size
        found = plain.compute_loss_from_embeddings(embeddings, None)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        found = cached.calculate_loss([list(column.split(2)) for column in embeddings])
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        plain(features, None)
        cached(features, None)


def test_one_column_is_refused_as_by_stock():
    with pytest.raises(ValueError, match="Expected at least 2 embeddings, got 1"):
        MaskedMultipleNegativesRankingLoss(Lookup()).compute_loss_from_embeddings([torch.ones(2, 8)], None)
    with pytest.raises(ValueError, match="Expected at least 2 inputs, got 1"):
        CachedMaskedMultipleNegativesRankingLoss(Lookup())(columns([1, 2]), None)


def test_negative_margin_is_refused():
    with pytest.raises(ValueError, match=r"mask_margin=-0\.1"):
        MaskedMultipleNegativesRankingLoss(Lookup(), mask_margin=-0.1)


texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(0, 3), st.booleans())
def test_hashes_are_equal_exactly_for_equal_texts(sentences, extra, left):
    width = max(map(len, sentences)) + extra
    ids = torch.full((len(sentences), width), 3)
    mask = torch.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        place = slice(width - len(sentence), width) if left else slice(0, len(sentence))
        ids[row, place], mask[row, place] = torch.tensor(sentence), 1
    padded = text_hashes({"input_ids": ids, "attention_mask": mask})
    sizes = torch.tensor([0, *map(len, sentences)]).cumsum(0)
    packed = text_hashes({"input_ids": torch.tensor([i for s in sentences for i in s])[None], "cu_seq_lens_q": sizes})
    assert torch.equal(padded, packed)
    for i, a in enumerate(sentences):
        for j, b in enumerate(sentences):
            assert (padded[i] == padded[j]).item() == (a == b)


def test_hashes_leave_the_prompt_out():
    with_prompt = {
        "input_ids": torch.tensor([[7, 8, 1, 2]]),
        "attention_mask": torch.ones(1, 4),
        "prompt_mask": torch.tensor([[1, 1, 0, 0]]),
    }
    without = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
    assert torch.equal(text_hashes(with_prompt), text_hashes(without))


def test_hashes_do_not_collide():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 250880, (200_000, 3), generator=generator).unique(dim=0)
    hashes = text_hashes({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert len(hashes.unique()) == len(ids)


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("kind", [MaskedMultipleNegativesRankingLoss, CachedMaskedMultipleNegativesRankingLoss])
def test_matryoshka_masks_in_every_dimension(kind, margin):
    features = columns([1, 1, 2, 3], [5, 6, 1, 5], [9, 10, 5, 1])
    model, expected, gradient = Lookup(), 0.0, 0.0
    for dimension, weight in ((8, 1.0), (3, 0.5)):
        part = Lookup()
        part.table = torch.nn.Parameter(model.table.detach()[:, :dimension])
        value, slope = value_and_gradient(MaskedMultipleNegativesRankingLoss(part, mask_margin=margin), features)
        expected += weight * value
        gradient = gradient + weight * torch.nn.functional.pad(slope, (0, 8 - dimension))
    loss = MatryoshkaLoss(model, kind(model, mask_margin=margin), matryoshka_dims=[8, 3], matryoshka_weights=[1, 0.5])
    found = value_and_gradient(loss, features)
    assert found[0] == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(found[1], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [MaskedMultipleNegativesRankingLoss, CachedMaskedMultipleNegativesRankingLoss])
def test_matryoshka_goes_around_it(kind, tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    data = Dataset.from_dict(
        {"anchor": ["a man plays", "a man plays", "hi"], "positive": ["he plays", "music", "hello"]}
    )
    loss = MatryoshkaLoss(tiny_model, kind(tiny_model), matryoshka_dims=[64, 16])
    trainer = SentenceTransformerTrainer(
        tiny_model,
        SentenceTransformerTrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=3,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=data,
        loss=loss,
    )
    assert trainer.train().training_loss > 0


def test_config_names_the_masking():
    loss = CachedMaskedMultipleNegativesRankingLoss(Lookup(), mask_margin=0.2)
    assert loss.get_config_dict()["mask_margin"] == 0.2
    assert loss.get_config_dict()["similarity_fct"] == "cos_sim"
    assert isinstance(loss, CachedMultipleNegativesRankingLoss)
