"""Stage 1: collect the sentences that the model learns from, and leave out every sentence of an STS set.

Output, in --work-dir:

* `texts.parquet`: one unique sentence a row; `text`, `lang`, `english` (the row of its English translation, its own
  row for English, -1 where none is known), `source` (the data set that brought it first);
* `sources.json`: sentences and licence of each source, which the model card lists.

The model is judged on STS sets, so it must not have seen their sentences: one that occurs in an STS set (any split,
any language; compared after lower-casing and removing punctuation) is dropped. MRPC, SICK and STS files are no
sources at all, and tatoeba-test is left to evaluation.

The most frequent words of each language are added as texts of one word: a teacher that knows the language says what
they mean, which a small model does not learn from a few thousand sentences.

Sources are read from --data-dir where it is given (folders `nli/`, `paraphrase/`, `parallel/`, `sts/`), otherwise
from the Hub by name. The Hub list is larger than the local one, so the two give different models.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from letters import SERBIAN_LATIN, UYGHUR_CYRILLIC, by_letters

Row = dict[str, str]  # language -> sentence; the sentences of one row mean the same

BY_SA4, BY_NC4, TATOEBA = "CC BY-SA 4.0", "CC BY-NC 4.0 (non-commercial)", "CC BY 2.0 FR"
BY_NC_SA4 = "CC BY-NC-SA 4.0 (non-commercial)"
MULTINLI, WIKI3 = "OANC / CC BY 3.0 / CC BY-SA 3.0 / public domain", "CC BY-SA 3.0"
PAWSX = "free for any purpose, attribution to Google LLC appreciated"

# (glob below the data directory, licence). Pairs of sentences in one language: each column stands for itself.
SINGLE = [
    ("nli/snli.en.*", BY_SA4),
    ("nli/mnli.en.*", MULTINLI),
    ("nli/cad-nli.en.*", "Apache-2.0 / CC BY-SA 4.0"),
    ("nli/conjnli.en.*", "MIT"),
    ("nli/tenp-*.en.*", WIKI3),
    ("nli/sanli-*.en.*", WIKI3),
    ("nli/breaking-nli.en.*", BY_SA4),
    ("nli/farstail.fa.*", "Apache-2.0"),
    ("nli/indonli.id.*", BY_SA4),
    ("nli/mnli-mt.id.*", "MultiNLI licences / CC BY-SA 4.0"),
    ("nli/klue-nli.ko.*", BY_SA4),
    ("nli/inferbr.pt.*", "MIT"),
    ("nli/rte3.fr.*", "BSD-2-Clause"),
    ("nli/hurte.hu.*", BY_SA4),
    ("paraphrase/pawsx.*", PAWSX),
    ("paraphrase/wikisplit.en.*", BY_SA4),
    ("paraphrase/audiocaps.en.*", "MIT"),
    ("paraphrase/parakqc.ko.*", BY_SA4),
    ("paraphrase/korqpair.ko.*", "MIT"),
    ("paraphrase/turku-opus-pb.fi.*", BY_SA4),
    ("paraphrase/turku.sv.*", BY_SA4),
    ("paraphrase/arpa.hy.*", "Apache-2.0"),
    ("paraphrase/mahaparaphrase.mr.*", BY_NC_SA4),
]
# Rows with one key per language.
KEYED = [
    ("parallel/tatoeba.en-*.train", TATOEBA),
    ("parallel/xquad-questions.*", BY_SA4),
    ("parallel/koen-news.*", WIKI3),
    ("parallel/nusax.12langs.*", BY_SA4),
]
# How much a language counts in tokenizer and batches, beside its size: those that BLOOM knows and that have an STS set
# first, more where words fall to pieces; those with neither, hardly.
FAVOUR = {
    "en": 4.0, "es": 3.0, "fr": 3.0, "pt": 3.0, "zh": 2.5, "ar": 2.5, "hi": 2.0, "de": 3.0, "vi": 0.7, "id": 1.0,
    "it": 2.5, "nl": 2.5, "pl": 2.5, "ru": 2.5, "tr": 2.0, "sv": 1.5, "ro": 1.8, "cs": 1.0, "mr": 1.5, "bn": 1.5,
    "th": 0.1, "my": 0.1, "hy": 0.1, "bg": 0.1, "hr": 0.2, "he": 0.1, "fi": 0.1, "hu": 0.1, "da": 0.1, "nb": 0.1,
    "sk": 0.1, "uk": 0.2, "bs": 0.1, "sl": 0.1, "af": 0.1, "tt": 0.1, "el": 0.2, "ko": 0.5, "ja": 0.7, "ur": 0.2,
    "sw": 0.2, "az": 1.5, "fa": 1.2, "kk": 1.5, "ky": 1.5, "ug": 1.5, "uz": 1.5, "sr": 0.2,
    SERBIAN_LATIN: 1.5, UYGHUR_CYRILLIC: 1.0,
}  # fmt: skip
WORDS = "words"  # the source of single words
UNSPACED = ("ja", "th", "zh")  # words are written together
MARKS = string.punctuation + "«»“”„‘’…—–¿¡।॥،؛؟"  # at the ends of words; vowel signs are none
NUSAX = {"indonesian": "id", "english": "en", "javanese": "jv", "sundanese": "su"}  # the rest has no STS set
ISO = {  # NTREX's codes for the languages that have an STS set somewhere, or that BLOOM knows
    "eng": "en", "spa": "es", "spa-MX": "es", "spa-ref2": "es", "fra": "fr", "fra-CA": "fr", "por": "pt",
    "por-BR": "pt", "zho-CN": "zh", "zho-TW": "zh", "arb": "ar", "hin": "hi", "vie": "vi", "ind": "id",
    "msa": "ms", "cat": "ca", "eus": "eu", "glg": "gl", "ben": "bn", "mar": "mr", "tam": "ta", "tel": "te",
    "urd": "ur", "guj": "gu", "kan": "kn", "mal": "ml", "pan": "pa", "nep": "ne", "swa": "sw", "yor": "yo",
    "deu": "de", "ita": "it", "nld": "nl", "kor": "ko", "jpn": "ja", "tur": "tr", "rus": "ru", "pol": "pl",
    "ron": "ro", "swe": "sv", "dan": "da", "nob": "nb", "fin": "fi", "ces": "cs", "slk": "sk", "bul": "bg",
    "ukr": "uk", "ell": "el", "hrv": "hr", "srp-Latn": "sr", "srp-Cyrl": "sr", "bos": "bs", "slv": "sl",
    "hun": "hu", "fas": "fa", "heb": "he", "tha": "th", "kaz": "kk", "kir": "ky", "uzb": "uz", "aze-Latn": "az",
    "uig": "ug", "tat": "tt", "afr": "af", "hye": "hy",
}  # fmt: skip
# (Hub data set, configuration, split, {column: language} or None for "all text columns are English", licence)
HUB: list[tuple[str, str | None, str, dict[str, str] | None, str]] = [
    ("stanfordnlp/snli", None, "train", None, BY_SA4),
    ("nyu-mll/multi_nli", None, "train", None, MULTINLI),
    *[
        (f"sentence-transformers/parallel-sentences-{name}", f"en-{lang}", "train",
         {"english": "en", "non_english": lang}, licence)
        for name, licence in [("tatoeba", TATOEBA), ("talks", "CC BY-NC-ND 4.0 (non-commercial)")]
        for lang in ["ar", "de", "es", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh"]
    ],
]  # fmt: skip
HUB_STS = [("mteb/stsbenchmark-sts", s) for s in ("train", "validation", "test")] + [
    (f"mteb/{name}", "test")
    for name in ("sts12-sts", "sts13-sts", "sts14-sts", "sts15-sts", "sts16-sts", "sickr-sts", "sts17-crosslingual-sts")
]


def norm(text: str) -> str:
    """Lower-case, without punctuation: equal strings count as the same sentence."""
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).lower()).split())


def jsonl(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return lines.read().splitlines()


def sts_sentences(data_dir: Path | None) -> set[str]:
    seen: set[str] = set()
    if data_dir:
        for path in sorted((data_dir / "sts").glob("*.jsonl.gz")):
            for row in jsonl(path):
                seen.update((norm(row["sentence1"]), norm(row["sentence2"])))
    else:
        from datasets import load_dataset

        for name, split in HUB_STS:
            for row in load_dataset(name, split=split):
                seen.update((norm(row["sentence1"]), norm(row["sentence2"])))
    return seen


def local_rows(data_dir: Path, noncommercial: bool) -> Iterator[tuple[str, str, Row]]:
    """Yield (source, licence, row) from a directory of gzipped JSON lines."""

    def paths(pattern: str) -> list[Path]:
        return sorted(data_dir.glob(pattern + ".jsonl.gz"))

    def name(path: Path) -> str:
        return path.name.split(".")[0]

    for pattern, licence in SINGLE:
        if "non-commercial" in licence and not noncommercial:
            continue
        for path in paths(pattern):
            for row in jsonl(path):
                columns = ("premise", "hypothesis", "sentence1", "sentence2")
                for text in [row[c] for c in columns if c in row] + row.get("captions", []):
                    yield name(path), licence, {row["lang"]: text}
    for pattern, licence in KEYED:
        for path in paths(pattern):
            for row in jsonl(path):
                if name(path) == "nusax":
                    row = {NUSAX[k]: v for k, v in row.items() if k in NUSAX}
                yield name(path), licence, row
    for folder, licence, codes in [("ntrex128", BY_SA4, ISO), ("pud", WIKI3, None)]:
        files = {p.name.split(".")[0]: p for p in sorted((data_dir / "parallel" / folder).glob("*.txt.gz"))}
        english = read_lines(files["eng" if codes else "en"]) if files else []
        for code, path in files.items():
            lang = codes.get(code) if codes else code
            if lang:
                for left, right in zip(english, read_lines(path), strict=True):
                    yield folder, licence, {"en": left, lang: right}
    for split in ("dev", "test"):  # XNLI: the same rows in every language
        files = {p.name.split(".")[1]: p for p in paths(f"nli/xnli.*.{split}")}
        english = list(jsonl(files["en"])) if files else []
        for lang, path in files.items():
            if lang != "eu" and (noncommercial or lang == "ko"):  # the Basque copy states no licence
                for left, right in zip(english, jsonl(path), strict=True):
                    for column in ("premise", "hypothesis"):
                        licence = BY_SA4 if lang == "ko" else BY_NC4
                        # Korean comes from KorNLI; its English side is XNLI's and is left out without the flag
                        row = {lang: right[column]} if not noncommercial else {"en": left[column], lang: right[column]}
                        yield ("kornli" if lang == "ko" else "xnli"), licence, row


def frequent_words(texts: Iterable[tuple[str, str, str]], count: int) -> Iterator[tuple[str, str, Row]]:
    """The most frequent words of the texts (text, language, source), by language; a third as many where FAVOUR is low.

    Not of languages that write words together.
    """
    met: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, lang, _ in texts:
        if lang not in UNSPACED:
            met[lang].update(word for part in text.lower().split() if (word := part.strip(MARKS)) and word[0].isalpha())
    for lang, words in sorted(met.items()):
        for word, times in words.most_common(count if FAVOUR.get(lang, 0.5) >= 0.5 else count // 3):
            if times >= 2:
                yield WORDS, "that of the text in which they were met", {lang: word}


def hub_rows(noncommercial: bool) -> Iterator[tuple[str, str, Row]]:
    from datasets import load_dataset

    for name, config, split, columns, licence in HUB:
        if "non-commercial" in licence and not noncommercial:
            continue
        for row in load_dataset(name, config, split=split):
            if columns:
                yield name, licence, {lang: row[column] for column, lang in columns.items()}
            else:
                yield from ((name, licence, {"en": row[c]}) for c in ("premise", "hypothesis"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of local files; default: the Hub")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--words", type=int, default=30000, help="frequent words of each language")
    parser.add_argument("--commercial-only", action="store_true", help="leave non-commercial sources out")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)

    forbidden = sts_sentences(args.data_dir)
    index: dict[tuple[str, str], int] = {}  # (lang, text) -> row
    texts: list[tuple[str, str, str]] = []
    english: list[int] = []
    dropped: Counter[str] = Counter()
    licences: dict[str, str] = {}

    def add(lang: str, text: str, source: str) -> int:
        text = " ".join(text.split())
        if not 2 <= len(text) <= 600 or (lang, text) in index:
            return index.get((lang, text), -1)
        if norm(text) in forbidden:
            dropped[source] += 1
            return -1
        index[lang, text] = len(texts)
        texts.append((text, lang, source))
        english.append(len(texts) - 1 if lang == "en" else -1)
        return len(texts) - 1

    noncommercial = not args.commercial_only
    rows = local_rows(args.data_dir, noncommercial) if args.data_dir else hub_rows(noncommercial)
    for stream in (rows, frequent_words(texts, args.words)):
        for source, licence, row in stream:
            licences[source] = licence
            anchor = add("en", row["en"], source) if "en" in row else -1
            for lang, text in by_letters(row):
                if lang != "en":
                    place = add(lang, text, source)
                    if place >= 0 and english[place] < 0:
                        english[place] = anchor
    table = pa.table(
        {
            "text": [t for t, _, _ in texts],
            "lang": pa.array([lang for _, lang, _ in texts]).dictionary_encode(),
            "english": pa.array(english, pa.int32()),
            "source": pa.array([s for _, _, s in texts]).dictionary_encode(),
        }
    )
    pq.write_table(table, args.work_dir / "texts.parquet.part")
    (args.work_dir / "texts.parquet.part").replace(args.work_dir / "texts.parquet")
    counts = Counter(source for _, _, source in texts)
    report = {
        "sources": {s: {"sentences": counts[s], "licence": licences[s], "dropped_sts": dropped[s]} for s in licences},
        "sentences": Counter(lang for _, lang, _ in texts).most_common(),
        "translations": Counter(
            lang for (_, lang, _), e in zip(texts, english, strict=True) if e >= 0 and lang != "en"
        ).most_common(),
    }
    (args.work_dir / "sources.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, ensure_ascii=False))


if __name__ == "__main__":
    main()
