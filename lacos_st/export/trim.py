"""`trim_vocabulary`: a model that keeps the tokens of some texts or scripts, and embeds those texts as before.

Half of a small multilingual model is its embedding table: a row for each token of all its languages. A row that no text
of yours looks up does nothing for you. What stays is decided in `vocabulary.py` (by texts) and `scripts.py` (by
languages); here rows and tokenizer are exchanged, and every number that means a token is changed with them:

    tokenizer.json     vocabulary, merges, added tokens, what the template puts around a text
    config.json        vocab_size, each `..._token_id`, and the tokens that a load finds outlier columns with
    the table          its rows keep their bytes

Adapters lie over linear layers, which do not change: they are kept as they are, and train on. The base is a new one,
which lies nowhere else, so the model is saved with it.

Nothing is believed. Each text is tokenised again and must give the same tokens, and a hundred are embedded before and
after.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from lacos_st.data.columns import text_fault
from lacos_st.data.readers import DataError, open_file
from lacos_st.decoder.embedding_table import keep_rows_
from lacos_st.decoder.outliers import PROBE, probe
from lacos_st.errors import LacosError, shown
from lacos_st.export.scripts import fits, scripts_of
from lacos_st.export.vocabulary import always_kept, check_trimmable, token_bytes, trimmed, with_pieces
from lacos_st.model.model import LacosSentenceTransformer

_TOKEN_ID = re.compile(r"\w+_token_(id|index)s?")
_BATCH = 1000  # texts tokenised at a time
_COMPARED = 100  # texts embedded before and after
_LEAST = 1 - 1e-6  # cosine of the two


@dataclass
class TrimReport:
    """What became of a vocabulary.

    Attributes:
        rows: Of the embedding table, before and after.
        table: Its bytes in memory, before and after.
        model: The bytes of all parameters in memory, before and after.
        tokenizer: Bytes of `tokenizer.json`, before and after.
        texts: Texts that give the same tokens as before, each checked; without a corpus, tokens written as texts.
        compared: Those of them that were embedded before and after.
        cosine: The smallest cosine between the two.
        corpus: Whether texts were given.
        scripts: What `languages` meant, by ISO 15924.
    """

    rows: tuple[int, int]
    table: tuple[int, int]
    model: tuple[int, int]
    tokenizer: tuple[int, int]
    texts: int
    compared: int
    cosine: float
    corpus: bool = True
    scripts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = [("table", self.table), ("model", self.model), ("tokenizer", self.tokenizer)]
        kept_by = ["by texts"] * self.corpus + [f"by script ({', '.join(self.scripts)})"] * bool(self.scripts)
        texts = "texts" if self.corpus else "tokens, taken as texts,"
        return "\n".join(
            [
                f"{self.rows[1]:,} of {self.rows[0]:,} tokens stay, {' and '.join(kept_by)}.",
                *(f"  {name:<10}{old / 2**20:9,.1f} MiB -> {new / 2**20:,.1f} MiB" for name, (old, new) in sizes),
                f"{self.texts:,} {texts} give the same tokens; {self.compared} of them were embedded before and after: "
                f"smallest cosine {self.cosine:.7f}.",
            ]
        )


def trim_vocabulary(
    model: LacosSentenceTransformer,
    corpus: Sequence[str | Path] = (),
    languages: Sequence[str] = (),
    show_progress: bool = True,
) -> TrimReport:
    """Keep the tokens that texts use, in place; save the model afterwards.

    Args:
        model: With or without adapters; they stay.
        corpus: Files of texts, of any format that training reads. Every text in every column counts.
        languages: Codes, such as "en" or "sr-Latn": every token that a text in their scripts can have.
        show_progress: Whether a bar counts the texts.

    Returns:
        Sizes before and after, and what was checked.

    Raises:
        LacosError: Neither texts nor languages, a file without a text or that cannot be read, a tokenizer that is no
            plain BPE, an adapter over the table, or a model that embeds otherwise afterwards.

    Example:
        >>> model = LacosSentenceTransformer("lacos-bloom")
        >>> report = trim_vocabulary(model, languages=["el"], show_progress=False)
        >>> report.rows[0], report.rows[1] < 7000, report.cosine > 1 - 1e-6
        (57344, True, True)
    """
    scripts = check_sources(corpus, languages)
    transformer, old = model.transformer, model.tokenizer
    told = json.loads(old.backend_tokenizer.to_str())
    check_trimmable(told)

    rows, before = transformer.config.vocab_size, _sizes(model)
    used = always_kept(told) | _named(model, rows)
    of_script = _of_scripts(told, scripts) if scripts else set()
    sample = list(dict.fromkeys(_sample(corpus) if corpus else _read_back(old, sorted(of_script))))
    if not sample:
        where = ", ".join(map(str, corpus)) or f"the vocabulary in the scripts {', '.join(scripts)}"
        raise LacosError(f"There is not one text in {where}: nothing would be left to embed.")
    with tqdm(desc="Tokenising", unit=" texts", disable=not show_progress) as bar:
        texts = 0
        for batch in _batches(corpus, model):
            used.update(*_tokenised(old, batch))
            texts += len(batch)
            bar.update(len(batch))
        kept = sorted(number for number in with_pieces(told, used) | of_script if number < rows)

        embedded = _embed(model, sample)
        new = _smaller(old, trimmed(told, kept))
        place = {number: position for position, number in enumerate(kept)}
        for batch in chain(_batches(corpus, model), [tuple(sample)]):
            for text, ids, expected in zip(batch, _tokenised(new, batch), _tokenised(old, batch), strict=True):
                if ids != [place.get(number) for number in expected]:
                    raise LacosError(
                        f"The trimmed tokenizer cuts {shown(text)} otherwise than the whole one: this tokenizer cannot "
                        "be trimmed. Please report it."
                    )
            bar.update(len(batch))
    _exchange(model, new, place)
    cosine = float(np.min((embedded * _embed(model, sample)).sum(1)))
    if cosine < _LEAST:
        raise LacosError(
            f"Trimmed, the model embeds the same texts otherwise (smallest cosine {cosine:.7f}): something besides its "
            "embedding table counts its tokens. Use it untrimmed."
        )
    table, whole, file = zip(before, _sizes(model), strict=True)
    return TrimReport(
        rows=(rows, len(kept)),
        table=table,
        model=whole,
        tokenizer=file,
        texts=texts if corpus else len(sample),
        compared=len(sample),
        cosine=min(cosine, 1.0),
        corpus=bool(corpus),
        scripts=scripts,
    )


def check_sources(corpus: Sequence[str | Path], languages: Sequence[str]) -> list[str]:
    """What can be told before a model is loaded: that there are texts or languages, and that they can be read.

    Args:
        corpus: Files of texts.
        languages: Codes.

    Returns:
        The languages' scripts.

    Raises:
        LacosError: Neither is given, a file that cannot be opened, or a language whose script is not known.
    """
    if not corpus and not languages:
        raise LacosError("Trimming needs to know what to keep: texts (--corpus FILE) or languages (--languages en ar).")
    for file in corpus:
        open_file(file)
    return scripts_of(languages)


def _named(model: LacosSentenceTransformer, rows: int) -> set[int]:
    """Tokens with a role in tokenizer or configuration, those of prompts, and those that find outlier columns."""
    found = {*model.tokenizer.all_special_ids, *probe(model.transformer.config)}
    found.update(*_tokenised(model.tokenizer, _prompts(model)))
    for _, value in _token_ids(model.transformer.config):
        found.update(value if isinstance(value, list) else [value])
    return {number for number in found if 0 <= number < rows}


def _of_scripts(tokenizer: dict[str, Any], scripts: Sequence[str]) -> set[int]:
    """Tokens that texts in some scripts can have; what is added to mark a place in a text is in none."""
    possible, as_bytes = fits(scripts), token_bytes(tokenizer)
    marks = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    return {number for token, number in tokenizer["model"]["vocab"].items() if possible(as_bytes(token))} - marks


def _token_ids(config: Any) -> list[tuple[str, Any]]:
    """Settings that are a token's number or several."""
    return [
        (key, value)
        for key, value in config.to_dict().items()
        if _TOKEN_ID.fullmatch(key) and isinstance(value, int | list)
    ]


def _exchange(model: LacosSentenceTransformer, tokenizer: Any, place: dict[int, int]) -> None:
    """Put rows and tokenizer in place, and tell the configuration; `place` is old id -> new one."""
    transformer = model.transformer
    probed = probe(transformer.config)
    keep_rows_(transformer.model, list(place))
    setattr(transformer.config, PROBE, [place[number] for number in probed])
    for key, value in _token_ids(transformer.config):
        several = isinstance(value, list)
        setattr(transformer.config, key, [place[v] for v in value if v in place] if several else place.get(value))
    transformer.model.get_input_embeddings().padding_idx = transformer.config.pad_token_id
    tokenizer.padding_side = transformer.tokenizer.padding_side
    transformer.processor = tokenizer
    transformer.mark_base("trimmed")


def _smaller(tokenizer: Any, told: dict[str, Any]) -> Any:
    """A tokenizer of transformers as another, with another `tokenizer.json`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = Path(folder, "tokenizer_config.json")
        named = json.loads(settings.read_text(encoding="utf-8"))
        named.pop("added_tokens_decoder", None)  # by number; `tokenizer.json` says the same
        settings.write_text(json.dumps(named), encoding="utf-8")
        Path(folder, "tokenizer.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _tokenised(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    return ids


def _texts(file: str | Path) -> Iterator[str]:
    """Every text in every column of a file."""
    table = open_file(file)
    for row in table.rows():
        if row.problem is not None:
            raise DataError(f"{table.place(row.number)}: {row.problem}")
        for name, value in row.values.items():
            for text in _strings(value):
                if fault := text_fault(text, name, may_be_blank=True):
                    raise DataError(f"{table.place(row.number)}: {fault}")
                yield text


def _strings(value: Any) -> Iterator[str]:
    """The texts in a cell, in lists and mappings too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _prompts(model: LacosSentenceTransformer) -> list[str]:
    """What may stand before a text: nothing, or one of the model's prompts."""
    return list(dict.fromkeys(["", *model.prompts.values()]))


def _batches(corpus: Sequence[str | Path], model: LacosSentenceTransformer) -> Iterator[tuple[str, ...]]:
    """The texts of all files, each by itself and behind each of the model's prompts."""
    prompts = _prompts(model)
    texts = (prompt + text for file in corpus for text in _texts(file) for prompt in prompts)
    yield from iter(lambda: tuple(islice(texts, _BATCH)), ())


def _sample(corpus: Sequence[str | Path]) -> Iterator[str]:
    """Some texts of each file."""
    for file in corpus:
        yield from islice((text for text in _texts(file) if text.strip()), -(-_COMPARED // len(corpus)))


def _read_back(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Some tokens as texts: what there is to try where no texts are given."""
    some: Iterable[int] = ids[:: max(len(ids) // _COMPARED, 1)][:_COMPARED]
    decoded = (tokenizer.decode([number]) for number in some)
    return [text for text in decoded if text.strip() and "\ufffd" not in text]


def _embed(model: Any, texts: list[str]) -> Any:
    """Embeddings of length 1, in float64: fp32 alone would move a cosine by 1e-7."""
    embeddings = np.asarray(model.encode(sentences=texts, show_progress_bar=False), np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _sizes(model: LacosSentenceTransformer) -> tuple[int, int, int]:
    """Bytes of the table, of all parameters, and of `tokenizer.json`."""

    def held(modules: Iterable[Any]) -> int:
        tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    table = model.transformer.model.get_input_embeddings()
    return held([table]), held([model]), len(model.tokenizer.backend_tokenizer.to_str().encode())
