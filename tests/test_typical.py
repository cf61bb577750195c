"""`recipes/bloom-mini/typical.py`: what sentences have in common is a bias; what has it counts as more alike."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from lacos_st import LacosSentenceTransformer, embedded
from lacos_st.bloom import LacosBloomModel

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import ship
import typical
import unpack
from student import config, save

NEWS = {"en": 30, "es": 50, "th": 20}  # Thai is a language that does not count


def write(folder: Path) -> None:
    rows = [(f"{lang} news {i}", lang, "ntrex128") for lang, count in NEWS.items() for i in range(count)]
    rows += [(f"en talk {i}", "en", "tatoeba") for i in range(30)]
    columns = dict(zip(("text", "lang", "source"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "texts.parquet")


def test_the_bias_is_both_means_however_often(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(typical, "EACH", 40)
    embedded.unpack("bloom-mini", tmp_path / "tokenizer")
    torch.manual_seed(0)
    save(LacosBloomModel(config(57344, 64, 1)), tmp_path / "before", tmp_path / "tokenizer")
    for source, output in (("before", "after"), ("after", "again")):
        paths = [tmp_path / source, tmp_path / output, "--work-dir", tmp_path]
        monkeypatch.setattr(sys, "argv", ["typical.py", *map(str, paths)])
        typical.main()
    before, after, again = (SentenceTransformer(str(tmp_path / name)) for name in ("before", "after", "again"))
    kinds = [typical.news(tmp_path), typical.statements()]
    added = after[-1].norm.bias.numpy(force=True)
    means = [before.encode(texts).mean(0) for texts in kinds]
    expected = sum(mean / np.linalg.norm(mean) for mean in means) * typical.LENGTH * 128**0.5
    np.testing.assert_allclose(added, expected, atol=2e-3)
    np.testing.assert_allclose(again[-1].norm.bias.numpy(force=True), added, atol=1e-3)
    np.testing.assert_allclose(after.encode(kinds[0]), before.encode(kinds[0]) + added, atol=1e-5)

    ours = LacosSentenceTransformer(tmp_path / "after", transformer_options={"quantization": "none"})
    np.testing.assert_allclose(ours.encode(kinds[0]), after.encode(kinds[0]), atol=1e-4)


def test_the_shipped_base_unpacked_says_what_it_said_and_ships_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unpack.py", str(tmp_path / "base")])
    unpack.main()
    stock = SentenceTransformer(str(tmp_path / "base"))
    assert stock[-1].norm.bias.norm() > 1
    texts = typical.statements()[:40]
    said = LacosSentenceTransformer("bloom-mini").encode(texts, truncate_dim=512, normalize_embeddings=True)
    cosine = (stock.encode(texts, normalize_embeddings=True) * said).sum(1)
    assert cosine.min() > 0.999

    embedded.unpack("bloom-mini", tmp_path / "work")  # its sketch is where `lexical.py` leaves one
    (tmp_path / "work/sources.json").write_text('{"sources": {}, "sentences": []}')
    paths = [tmp_path / "base", "--output", tmp_path / "shipped", "--work-dir", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["ship.py", *map(str, paths)])
    ship.main()
    for name in ("1_Dense", "3_LayerNorm", "lexical"):
        file = f"{name}/model.safetensors"
        assert (tmp_path / "shipped" / file).read_bytes() == (embedded.ASSETS / "bloom-mini" / file).read_bytes()


def test_sentences_are_as_many_of_each_language_that_counts(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(typical, "EACH", 40)
    drawn = typical.news(tmp_path)
    assert [sum(text.startswith(f"{lang} news") for text in drawn) for lang in NEWS] == [30, 40, 0]
    assert len(drawn) == len(set(drawn)) == 70
    assert len(set(typical.statements())) == 5 * 40
    assert drawn == typical.news(tmp_path)


def test_two_that_are_like_most_others_are_nearer_and_two_that_are_like_none_farther():
    """The formula at the head of the file, for a short bias."""
    random = np.random.default_rng(0)
    unit = random.standard_normal((500, 2, 32)) + 0.3
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    first, second = unit[:, 0], unit[:, 1]
    cosine = (first * second).sum(1)
    share = 0.01 * unit.mean((0, 1))
    with_it = (unit + share) / np.linalg.norm(unit + share, axis=2, keepdims=True)
    found = (with_it[:, 0] * with_it[:, 1]).sum(1) - cosine
    expected = (1 - cosine) * ((first + second) @ share)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert found[expected > 1e-4].min() > 0
    assert found[expected < -1e-4].max() < 0
