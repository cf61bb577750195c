"""Stage 2: a byte-level BPE tokenizer, balanced over languages.

BLOOM's conventions: ids 0 to 3 are <unk>, <s>, </s>, <pad>; byte-level, so nothing is unknown; padded on the right;
split at letters, digits and punctuation. Ours also folds compatibility forms (NFKC), lower-cases and puts a space in
front: "Dog", "dog" and " dog" would otherwise cost three rows of the table. The post-processor appends </s>, whose
state has read the whole sentence.

The normaliser removes what writers of a script leave out (Arabic vowel marks, Hebrew points) and folds what they vary
(digits, dashes, quotation marks). What tells words apart stays: French accents, Devanagari vowel signs, Vietnamese
tones. So do Arabic letters with hamza and the Persian forms of yeh and kaf: most words of the vocabulary that have
them have them in this form, and folding them costs 4 to 9 points of retrieval (`docs/log.md`).

Each language gets a share of the training text proportional to its size to the power of 0.55, times `FAVOUR`. A row
costs 131 bytes of the package (4 bits an entry) and no time: a word that is one token need not be put together by the
layers, and where content words fall to pieces the sentence's mean loses them. So there are as many rows as the
package has room for.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from collect import FAVOUR
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
INVISIBLE = r"[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe0e\ufe0f\ufeff]"
"""Hyphens where a word may be cut, directions of writing, forms of emoji, marks of byte order."""
POINTS = (
    r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Hebrew
    r"\u0610-\u061a\u0640\u064b-\u0658\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"  # Arabic
)
"""Vowel marks of scripts whose writers leave them out, marks of recitation, and the sign that stretches a word."""
ZEROS = "\u0660\u06f0\u0966\u09e6\u0a66\u0ae6\u0b66\u0be6\u0c66\u0ce6\u0d66\u0e50\u0ed0\u1040\u17e0"
"""The digit 0 of Arabic, Persian and Urdu, Devanagari, Bengali ...; 1 to 9 follow each."""
APOSTROPHE = (
    r"(?<=\p{L})(?<![og])\u2019(?=\p{L})|(?<=[og])\u2019(?=(?:s|t|re|ve|ll|d|m|clock)\b)"
    r"|(?<=\p{Cyrillic})\u02bc(?=\p{Cyrillic})"
)
"""The typographic one, within a word. After o and g it may be part of an Uzbek letter, and stays."""
QUOTE = r"(?<!\p{L})[\u2018-\u201b\u2032]|[\u2018-\u201b\u2032](?!\p{L})|\u05f3"
"""Single quotation marks and primes that do not stand within a word."""
VARIANTS = [
    *((f"[{''.join(chr(ord(zero) + digit) for zero in ZEROS)}]", str(digit)) for digit in range(10)),
    ("\u066a", "%"),
    ("\u066b", "."),
    ("\u066c", ","),
    (r"[\u2010-\u2015\u2212\u05be]", "-"),  # dashes
    (r"[\u201c-\u201f\u00ab\u00bb\u2039\u203a\u300c-\u300f\u05f4]", '"'),
    ("(?<=[\u0620-\u06ff])\u200c(?=[\u0620-\u06ff])", " "),  # Persian: a narrow space, often written as a space
    ("\u0930\u094d\u200d", "\u0931\u094d"),  # Marathi: half a ra, from times before it had a sign
    (r"(?<=[\p{L}\p{M}])[\u200c\u200d]", ""),  # elsewhere they only say how letters join
    ("i\u0307", "i"),  # what lower-casing makes of the Turkish capital
    ("\u0451", "\u0435"),  # Russian, whose writers leave its dots out
    ("\u0163", "\u021b"),  # Romanian: t with a cedilla, from times without the comma
    ("\u0671", "\u0627"),  # Arabic: alef of recitation
    (r"(?<=\p{L})\u03c3(?!\p{L})", "\u03c2"),  # Greek: the sigma that ends a word in capitals
]
"""What is one sign to readers of a script: pattern, and the form that most of the vocabulary has."""
SPLIT = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def build(sentences: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence(
        [
            # before NFKC, which makes a space and a mark of an acute accent that stands alone
            normalizers.Replace(Regex(r"(?<=[oOgG])[\u2018`](?=\p{L})"), "\u02bb"),  # Uzbek letters
            normalizers.Replace(Regex("[\u00b4`]"), "\u2019"),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(INVISIBLE), ""),
            normalizers.Replace(Regex(POINTS), ""),
            *(normalizers.Replace(Regex(pattern), form) for pattern, form in VARIANTS),
            normalizers.Replace(Regex(APOSTROPHE), "'"),
            normalizers.Replace(Regex(QUOTE), "'"),
            normalizers.Replace(Regex(r"\s+"), " "),  # a wrapped line, a tab, two spaces: words keep their pieces
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
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
    """Text of `characters` in all; a language's share is FAVOUR times (its characters)**power.

    Where it has too little its texts are repeated, up to three times.
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
        used = 0
        for text in texts * 3:
            if used >= characters * wanted[lang] / total:
                break
            chosen.append(text)
            used += len(text)
        share[lang] = used
    return chosen, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--vocabulary", type=int, default=57344)
    parser.add_argument("--characters", type=int, default=30_000_000)
    parser.add_argument("--power", type=float, default=0.55)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["text", "lang"])
    chosen, share = sample(table, args.characters, args.power, args.seed)
    tokenizer = build(chosen, args.vocabulary)
    tokenizer.save_pretrained(args.work_dir / "tokenizer")
    print({lang: round(n / 1e6, 2) for lang, n in sorted(share.items(), key=lambda item: -item[1])})
    print(f"{len(tokenizer)} entries from {sum(share.values()):,} characters of {len(share)} languages")
    langs = table["lang"].to_numpy()
    for lang in [lang for lang, factor in FAVOUR.items() if factor >= 0.5 and lang in share]:
        rows = np.flatnonzero(langs == lang)
        texts = table["text"].take(rows[:: max(1, len(rows) // 1000)]).to_pylist()
        print(lang, f"{sum(map(len, tokenizer(texts)['input_ids'])) / max(1, len(texts)):.1f} tokens a sentence")


if __name__ == "__main__":
    main()
