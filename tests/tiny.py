"""A tiny random BLOOM on disk, laid out like the Hub's, and small helpers that several test files share."""

import json
from pathlib import Path

CORPUS = (
    "A man is playing a guitar on the street.",
    "Two dogs run through the tall grass, and a child laughs.",
    "The stock market fell sharply on Monday after weak figures.",
    "Un homme joue de la guitare dans la rue.",
    "Deux chiens courent dans l'herbe haute.",
    "Un hombre toca la guitarra en la calle.",
    "Ein Mann spielt auf der Straße Gitarre.",
    "رجل يعزف على الجيتار في الشارع",
    "एक आदमी सड़क पर गिटार बजा रहा है।",
    "一个男人在街上弹吉他。",
    "Mtu mmoja anapiga gitaa barabarani. 1 2 3 4 5 6 7 8 9 0",
)


def write_tiny_bloom(directory: Path, *, layers: int = 2, hidden: int = 64, heads: int = 4, seed: int = 0) -> Path:
    """Write a random fp32 BLOOM with the files, token ids and padding side of `bigscience/bloom-560m`."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import BloomConfig, BloomModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({**names, "tokenizer_class": "BloomTokenizerFast", "padding_side": "left"}),
        encoding="utf-8",
    )
    config = BloomConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,  # the Hub's tables too are larger than their vocabulary
        hidden_size=hidden,
        n_layer=layers,
        n_head=heads,
        seq_length=2048,
        initializer_range=0.08,  # wide enough that attention differs from a plain average
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        unk_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BloomModel(config).save_pretrained(directory)
    record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    record["architectures"] = ["BloomForCausalLM"]
    (directory / "config.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return directory


def randomise(model, seed: int = 0):
    """Give a fresh adapter, whose B is 0, an effect."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}
