"""Stage 1b: a byte-level BPE tokenizer, balanced over languages.

BLOOM's conventions: ids 0 to 3 are <unk>, <s>, </s>, <pad>; byte-level, so nothing is unknown; padded on the right;
split at letters, digits and punctuation. Ours also folds compatibility forms (NFKC), lower-cases and puts a space in
front: at 31,744 entries, "Dog", "dog" and " dog" would otherwise cost three rows of the table. The post-processor
appends </s>, whose state has read the whole sentence.

Each language gets a share of the training text (lists of words left out) proportional to its size to the power of
0.55, times `FAVOUR`. The table of 31,744 rows costs 8.2 MB of the package and no time: a word that is one token need
not be put together by the layers, and where content words fell to pieces the sentence's mean lost them (see
`docs/ablations.md`).
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from collect import FAVOUR
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
SPLIT = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def build(sentences: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="right",
        truncation_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def sample(table: pa.Table, characters: int, power: float, seed: int) -> tuple[list[str], dict[str, float]]:
    """Sentences of `characters` in all; a language's share is FAVOUR times (its characters)**power.

    Its text is repeated, up to three times, where it has too little.
    """
    by_lang: dict[str, list[str]] = defaultdict(list)
    for text, lang in zip(table["text"].to_pylist(), table["lang"].to_pylist(), strict=True):
        by_lang[lang].append(text)
    size = {lang: sum(map(len, texts)) for lang, texts in by_lang.items()}
    wanted = {lang: FAVOUR.get(lang, 0.5) * n**power for lang, n in size.items()}
    total = sum(wanted.values())
    chosen: list[str] = []
    share = {}
    for lang, texts in sorted(by_lang.items()):
        random.Random(seed).shuffle(texts)
        budget = min(3 * size[lang], characters * wanted[lang] / total)
        used = 0
        for text in texts * 3:
            if used >= budget:
                break
            chosen.append(text)
            used += len(text)
        share[lang] = used
    return chosen, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--vocabulary", type=int, default=31744)
    parser.add_argument("--characters", type=int, default=30_000_000)
    parser.add_argument("--power", type=float, default=0.55)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["text", "lang", "source"])
    table = table.filter(pc.not_equal(pc.cast(table["source"], pa.string()), "wordfreq"))
    chosen, share = sample(table, args.characters, args.power, args.seed)
    tokenizer = build(chosen, args.vocabulary)
    tokenizer.save_pretrained(args.work_dir / "tokenizer")
    print({lang: round(n / 1e6, 2) for lang, n in sorted(share.items(), key=lambda item: -item[1])})
    print(f"{len(tokenizer)} entries from {sum(share.values()):,} characters of {len(share)} languages")
    langs = table["lang"].to_numpy()
    for lang in ["en", "es", "fr", "pt", "zh", "ar", "hi", "vi", "id", "de", "ja", "ru", "ko", "tr"]:
        rows = np.flatnonzero(langs == lang)
        texts = table["text"].take(rows[:: max(1, len(rows) // 1000)]).to_pylist()
        print(lang, f"{sum(map(len, tokenizer(texts)['input_ids'])) / max(1, len(texts)):.1f} tokens a sentence")


if __name__ == "__main__":
    main()
