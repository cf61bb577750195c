import json

import pytest
from families import make
from tiny import CORPUS


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory):
    """A random Gemma 3 with a table that scales its rows and a tokenizer as SentencePiece's: `▁`, bytes, no regex."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    path = tmp_path_factory.mktemp("gemma") / "tiny-gemma"
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = told["added_tokens"][: len(specials)]  # bytes are tokens like others
    tokenizer = Tokenizer.from_str(json.dumps(told))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    model = make("gemma3")
    model.config.update({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "unk_token_id": 3})
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    (path / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "GemmaTokenizer"}))
    return path
