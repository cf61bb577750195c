"""`recipes/bloom-mini/retrofit.py`: rows are drawn to those that mean the same, and otherwise stay."""

import json
import sys

import numpy as np
import pytest
import retrofit
import tokenizer as recipe
import torch
from student import config, save

from lacos_st.decoder.bloom import LacosBloomModel

HIDDEN, VOCABULARY = 32, 400


@pytest.fixture
def rows():
    return torch.randn(200, HIDDEN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def said():
    """Two groups of tokens that mean much the same, and a hundred that mean nothing alike."""
    random = torch.Generator().manual_seed(1)
    groups = torch.randn(2, 48, generator=random).repeat_interleave(50, 0)
    return torch.cat([groups + 0.3 * torch.randn(100, 48, generator=random), torch.randn(100, 48, generator=random)])


def test_a_row_is_drawn_to_the_weighted_mean_of_its_neighbours(rows, said):
    share = torch.linspace(0, 1, len(rows))
    found = retrofit.retrofitted(rows, said, share).double().numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    table, teacher = rows.double().numpy(), said.double().numpy()
    teacher = unit(teacher - teacher.mean(0))
    for i, row in enumerate(table):
        cosine = teacher @ teacher[i]
        cosine[i] = -1
        near = np.argsort(-cosine)[: retrofit.NEIGHBOURS]
        weight = np.maximum(cosine[near] - retrofit.LEAST, 0)
        wanted = row
        if weight.any():
            mean = unit((weight[:, None] * unit(table[near])).sum(0))
            part = float(share[i])
            wanted = unit((1 - part) * unit(row) + part * mean) * np.linalg.norm(row)
        assert np.abs(found[i] - wanted).max() < 1e-4


def test_rows_of_one_meaning_come_together_and_keep_their_length(rows, said):
    found = retrofit.retrofitted(rows, said, torch.full((200,), 0.4))
    cosine = lambda x: torch.nn.functional.normalize(x[:50]) @ torch.nn.functional.normalize(x[:50]).T  # noqa: E731
    assert cosine(found).mean() > cosine(rows).mean() + 0.2
    assert torch.allclose(found.norm(dim=1), rows.norm(dim=1), rtol=1e-5)
    assert torch.equal(retrofit.retrofitted(rows, said, torch.zeros(200)), rows)


def test_a_checkpoint_is_retrofitted_but_for_what_english_uses_often(tmp_path, monkeypatch):
    words = " ".join(f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmn")
    recipe.build([f"the guitar . {words}"] * 9, VOCABULARY).save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    model = LacosBloomModel(config(VOCABULARY, HIDDEN, 1))
    save(model, tmp_path / "model", tmp_path / "tokenizer")
    tokenizer = retrofit.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    number = tokenizer.convert_tokens_to_ids
    random = np.random.default_rng(0)
    said = random.standard_normal((VOCABULARY, 8)).astype(np.float32)
    np.save(tmp_path / "token-said.npy", said)
    rarity = np.full((2, VOCABULARY), 9.5, np.float16)
    rarity[1, number("Ġthe")] = 1.0
    np.savez(tmp_path / "rarity.npz", langs=np.array(["de", "en"]), rarity=rarity)
    arguments = ["retrofit.py", tmp_path / "model", tmp_path / "output", "--work-dir", tmp_path]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    retrofit.main()
    old, new = (LacosBloomModel.from_pretrained(tmp_path / name).state_dict() for name in ("model", "output"))
    moved = (old["word_embeddings.weight"] != new["word_embeddings.weight"]).any(1)
    assert moved[number("Ġguitar")]
    assert not moved[[number(token) for token in ("Ġthe", "Ġ.", "ar", "</s>")]].any()
    assert torch.equal(old["word_embeddings.weight"][:, -2:], new["word_embeddings.weight"][:, -2:])
    assert all(torch.equal(old[key], new[key]) for key in old if key != "word_embeddings.weight")
    assert (tmp_path / "output/1_Dense").is_dir()
    assert json.loads((tmp_path / "output/modules.json").read_text())
