"""The recipe's reader of gettext catalogues: text in, no code, and files it cannot read left out."""

import struct
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))

from catalogues import annotation_rows, catalogue_rows, messages, sentences


def compiled(pairs: dict[str, str], order: str = "<", encoding: str = "utf-8") -> bytes:
    """A catalogue as `msgfmt` writes it."""
    texts = [text.encode(encoding) for text in (*sorted(pairs), *(pairs[key] for key in sorted(pairs)))]
    at, places = 28 + 16 * len(pairs), []
    for text in texts:
        places += [len(text), at]
        at += len(text) + 1
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, at)
    return head + struct.pack(f"{order}{len(places)}I", *places) + b"".join(text + b"\0" for text in texts)


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_of_either_byte_order(tmp_path, order):
    path = tmp_path / "a.mo"
    path.write_bytes(
        compiled({"": "Content-Type: text/plain\n", "one file\0%d files": "ein\0viele", "Open": ""}, order)
    )
    assert list(messages(path)) == [("one file", "ein")]


def test_what_is_no_catalogue_or_not_in_utf8_is_left_out(tmp_path):
    path = tmp_path / "a.mo"
    for content in (
        b"",
        b"text",
        compiled(
            {"A shop is open": "Ein Laden ist offen", "The cafe is open": "Das Café ist offen"}, encoding="latin-1"
        ),
    ):
        path.write_bytes(content)
        assert list(messages(path)) == []


@pytest.mark.parametrize(
    ("message", "translation", "found"),
    [
        (
            "menu\4_Open the old file\u2026",
            "Alte Datei &laden (~L)\u2026",
            [("Open the old file", "Alte Datei laden")],
        ),
        ("<b>Nobody came today</b>", "<b>Niemand kam heute</b>", [("Nobody came today", "Niemand kam heute")]),
        ("Who goes there?\nWe are friends.", "Wer da?\nWir sind Freunde.", None),
        ("Cannot open %s for reading", "Kann %s nicht lesen", []),
        ("The same in both", "The same in both", []),
        ("Set max_size to a number", "Eine Zahl für max_size", []),
        ("Ask AT&T for help", "AT&T um Hilfe bitten", [("Ask AT&T for help", "AT&T um Hilfe bitten")]),
        ("Not &lt;here&gt; but there", "Nicht &lt;hier&gt;", []),
        ("Too short", "Zu kurz", []),
    ],
)
def test_sentences_are_lines_that_read_like_text(message, translation, found):
    if found is None:
        found = list(zip(message.split("\n"), translation.split("\n"), strict=True))
    assert list(sentences(message, translation)) == found


def test_rows_join_languages_and_keep_to_the_limit(tmp_path):
    for folder, pairs in {
        "de": {"The sun is bright": "Die Sonne scheint hell", "A dog is barking": "Ein Hund bellt"},
        "pt_BR": {"The sun is bright": "O sol brilha"},
        "zh_TW": {"The sun is bright": "太陽很亮太陽很亮"},
        "xx": {"The sun is bright": "nothing known"},
    }.items():
        path = tmp_path / folder / "LC_MESSAGES" / "a.mo"
        path.parent.mkdir(parents=True)
        path.write_bytes(compiled(pairs))
    rows = list(catalogue_rows(tmp_path, ["de", "pt", "zh"], Counter(de=5, pt=5, zh=5)))
    assert sorted(rows, key=lambda row: row["en"]) == [
        {"en": "A dog is barking", "de": "Ein Hund bellt"},
        {"en": "The sun is bright", "de": "Die Sonne scheint hell", "pt": "O sol brilha"},
    ]
    assert Counter(lang for row in catalogue_rows(tmp_path, ["de"], Counter(de=1)) for lang in row) == {
        "en": 1,
        "de": 1,
    }


def test_annotations_join_names_and_keywords(tmp_path):
    for lang, name, words in (("en", "red heart", ["heart", "love"]), ("de", "rotes Herz", ["Herz", "Liebe"])):
        path = tmp_path / "annotations" / lang / "annotations.json"
        path.parent.mkdir(parents=True)
        entry = f'{{"tts": ["{name}"], "default": ["{words[0]}", "{words[1]}"]}}'
        path.write_text(f'{{"annotations": {{"annotations": {{"\u2764": {entry}}}}}}}', encoding="utf-8")
    assert list(annotation_rows(tmp_path, ["de", "nl"])) == [
        {"en": "red heart", "de": "rotes Herz"},
        {"en": "heart, love", "de": "Herz, Liebe"},
    ]
