"""The recipe's tokenizer and the shipped one read alike, and as readers of each script do."""

import json

import pytest
import tokenizer as recipe
from transformers import AutoTokenizer

from lacos_st.embedded import unpack as embedded


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "bloom-mini"
    embedded.unpack("bloom-mini", directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize("text", ["a man  plays guitar", " a man\nplays\r\nguitar", "a\u00a0man\tplays guitar \n"])
def test_white_space_is_one_space(tokenizer, text):
    assert tokenizer(text)["input_ids"] == tokenizer("a man plays guitar")["input_ids"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("I don\u2019t know what it\u2019s about", "I don't know what it's about"),
        ("l\u2019homme d\u2019aujourd\u2019hui, qu\u2019il", "l'homme d'aujourd'hui, qu'il"),
        ("all\u2019uomo un\u2019altra", "all'uomo un'altra"),
        ("six o\u2019clock", "six o'clock"),
        ("l\u00b4homme l`homme", "l'homme l'homme"),
        ("п\u2019ять п\u02bcять", "п'ять п'ять"),
        ("o\u2018zbek o`zbek", "o\u02bbzbek o\u02bbzbek"),
        ("\ufeffa gui\u00adtar \u200bplays\u200e", "a guitar plays"),
        ("كَتَبَ الوَلَدُ الدَّرْسَ", "كتب الولد الدرس"),  # vowel marks
        ("هٰذا كـــتاب", "هذا كتاب"),  # a small alef above; a stretched word
        ("ٱلكتاب", "الكتاب"),
        ("ﻛﺘﺎﺏ", "كتاب"),  # presentation forms
        ("שָׁלוֹם עוֹלָם", "שלום עולם"),  # points
        ("צה״ל בן־אדם", 'צה"ל בן-אדם'),
        ("سنة ٢٠٢٤", "سنة 2024"),  # Arabic digits
        ("نسبة ٣٫٥٪", "نسبة 3.5%"),
        ("سال ۱۴۰۳", "سال 1403"),  # Persian digits
        ("१५ अगस्त ১৫", "15 अगस्त 15"),  # Devanagari and Bengali digits
        ("２０２４年 ＡＢＣ", "2024年 abc"),  # full width
        ("ｶﾀｶﾅ", "カタカナ"),  # half width
        ("می\u200cخواهم", "می خواهم"),  # a narrow space
        ("क्\u200dष", "क्ष"),  # a joiner
        ("दर\u094d\u200dया", "दऱ\u094dया"),  # half a ra: valleys
        ("\u201cyes\u201d \u00abno\u00bb \u201eso\u201c \u300cそう\u300d", '"yes" "no" "so" "そう"'),
        ("\u2018yes\u2019, rock \u2019n\u2019 roll", "'yes', rock 'n' roll"),
        ("1939\u20131945 \u2014 a war \u2212 5", "1939-1945 - a war - 5"),  # dashes
        ("İstanbul", "istanbul"),
        ("ещё", "еще"),
        ("\u0163ară", "\u021bară"),  # a cedilla for a comma below
        ("ΟΔΟΣ", "οδος"),
        ("cafe\u0301", "café"),
        ("❤\ufe0f", "❤"),
    ],
)
def test_signs_that_nobody_sees_or_tells_apart_say_nothing(tokenizer, text, same):
    assert tokenizer(text)["input_ids"] == tokenizer(same)["input_ids"]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("pêche", "pèche"),  # French accents
        ("año", "ano"),
        ("schön", "schon"),  # umlauts
        ("mà", "má"),  # Vietnamese tones
        ("mả", "mạ"),
        ("कि", "की"),  # Devanagari vowel signs
        ("काम", "कम"),
        ("दर\u094dया", "दर\u094d\u200dया"),  # the sea, and valleys
        ("がき", "かき"),  # Japanese voicing
        ("й", "и"),
        ("ş", "s"),
        ("على", "علي"),  # "on" and a name; and a vowel of Uyghur
        ("bo\u2019ldi", "bo'ldi"),  # an Uzbek letter
    ],
)
def test_signs_that_tell_words_apart_stay(tokenizer, text, other):
    assert tokenizer(text)["input_ids"] != tokenizer(other)["input_ids"]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text


def test_the_recipe_cuts_texts_as_the_shipped_tokenizer_does(base):
    shipped = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    built = json.loads(recipe.build(["a text", "another"], 300).backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        assert built[part] == shipped[part], part


def test_the_tokenizer_loses_no_word_and_spells_what_it_does_not_know(tokenizer):
    for text in ("naïve café", "你好，世界", "مرحبا بالعالم", "नमस्ते दुनिया", "𓀀 ᚠ 🦜"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).strip() == text.lower().replace("，", ",")  # NFKC
