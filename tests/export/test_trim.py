"""A trimmed model embeds its texts as before, bit for bit, whoever loads it; any other text still has tokens."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise

from lacos_st.cli import main
from lacos_st.errors import LacosError
from lacos_st.export.scripts import fits, scripts_of
from lacos_st.export.trim import trim_vocabulary
from lacos_st.model.model import LacosSentenceTransformer

KEPT = list(CORPUS[:4])  # English and French
OTHERS = ["Ein Mann.", "رجل", "男人 42", "🦜 \x00", "", "zebra"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rows = [{"sentence1": KEPT[0], "more": KEPT[1:3]}, {"sentence1": KEPT[3], "score": 3.0, "more": None}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=["bloom", "gemma", "gemma in full precision"])
def model(request, tiny_bloom, tiny_gemma):
    options = {"quantization": "none" if "full" in request.param else "int8"}
    return LacosSentenceTransformer(tiny_bloom if request.param == "bloom" else tiny_gemma, transformer_options=options)


def test_texts_embed_as_before_after_saving_too(model, corpus, tmp_path):
    expected = model.encode(KEPT)
    own = model.transformer.model.get_input_embeddings().weight.shape[0]
    special = {role: getattr(model.tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
    report = trim_vocabulary(model, [corpus], show_progress=False)
    assert (report.texts, report.compared) == (4, 4)
    assert own == report.rows[0] > report.rows[1] > 256
    assert report.table[1] / report.table[0] == pytest.approx(report.rows[1] / report.rows[0], rel=0.01)
    np.testing.assert_array_equal(model.encode(KEPT), expected)
    model.save_pretrained(str(tmp_path / "small"))
    again = LacosSentenceTransformer(tmp_path / "small")
    np.testing.assert_array_equal(again.encode(KEPT), expected)
    stock = SentenceTransformer(str(tmp_path / "small"))
    found = stock.encode(KEPT)
    assert (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1) == (
        pytest.approx(1, abs=1e-3)
    )
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    rows = stock[0].model.get_input_embeddings().weight.shape[0]
    assert config["vocab_size"] == rows == len(stock.tokenizer) == report.rows[1]
    for role, token in special.items():
        number = stock.tokenizer.convert_tokens_to_ids(token)
        assert getattr(stock.tokenizer, f"{role}_token") == token
        assert config[f"{role}_token_id"] == number < rows
    for text in OTHERS:  # no id beyond the table, and no unknown token
        ids = stock.tokenizer(text)["input_ids"]
        assert 0 <= min(ids) <= max(ids) < rows
        assert stock.tokenizer.unk_token_id not in ids
    assert np.isfinite(stock.encode(OTHERS)).all()
    assert "-trimmed" in again.transformer.base["name"]


def test_unused_marks_go_and_ascii_stays(tiny_gemma, corpus):
    model = LacosSentenceTransformer(tiny_gemma)
    whole = model.tokenizer.get_vocab()
    trim_vocabulary(model, [corpus], show_progress=False)
    left = model.tokenizer.get_vocab()
    assert "<unused0>" in whole.keys() - left.keys()
    assert {token for token in whole if len(token) == 1 and token.isascii()} <= left.keys()
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= left.keys()


def test_adapters_stay_and_train_on(tiny_bloom, corpus, tmp_path):
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2)).eval()
    randomise(model.add_lora(rank=2, name="second"), seed=1).set_adapter("default")
    expected = model.encode(KEPT)
    model.set_adapter("second")
    second = model.encode(KEPT)
    model.set_adapter("default")
    trim_vocabulary(model, [corpus], show_progress=False)
    model.save_pretrained(str(tmp_path / "small"))
    again = LacosSentenceTransformer(tmp_path / "small", is_trainable=True)
    np.testing.assert_array_equal(again.encode(KEPT), expected)
    assert any(parameter.requires_grad for parameter in again.parameters())
    again.set_adapter("second")
    np.testing.assert_array_equal(again.encode(KEPT), second)
    trimmed_again = trim_vocabulary(LacosSentenceTransformer(tmp_path / "small"), [corpus], show_progress=False)
    assert trimmed_again.rows[0] == trimmed_again.rows[1]


def test_the_prompts_of_a_model_stay(tiny_bloom, corpus):
    model = LacosSentenceTransformer(tiny_bloom, prompts={"query": "رجل: "})
    expected = model.encode(KEPT, prompt_name="query")
    trim_vocabulary(model, [corpus], show_progress=False)
    np.testing.assert_array_equal(model.encode(KEPT, prompt_name="query"), expected)


def test_an_adapter_over_the_table_is_refused(tiny_bloom, corpus):
    model = LacosSentenceTransformer(tiny_bloom)
    model.add_adapter(LoraConfig(r=2, target_modules=["word_embeddings"]))
    with pytest.raises(LacosError, match="cannot be trimmed then"):
        trim_vocabulary(model, [corpus], show_progress=False)


@pytest.fixture(scope="module", params=["bloom", "gemma"])
def by_script(request, tiny_bloom, tiny_gemma):
    base = tiny_bloom if request.param == "bloom" else tiny_gemma
    whole, small = (LacosSentenceTransformer(base) for _ in range(2))
    report = trim_vocabulary(small, languages=["hi", "ar"], show_progress=False)
    assert report.scripts == ["Deva", "Arab"]
    assert report.rows[1] < report.rows[0]
    return whole.tokenizer, small.tokenizer


_LETTERS = sorted({letter for text in CORPUS[7:9] for letter in text} | set("٣४0123 !?،।\n🦜"))


@settings(max_examples=200)
@given(text=st.text(st.sampled_from(_LETTERS) | st.characters(min_codepoint=0x600, max_codepoint=0x6F9)))
def test_any_text_in_the_scripts_is_cut_as_before(by_script, text):
    whole, small = by_script
    assert small.convert_ids_to_tokens(small(text)["input_ids"]) == whole.convert_ids_to_tokens(
        whole(text)["input_ids"]
    )


@settings(max_examples=200)
@given(text=st.text(st.characters(min_codepoint=0x600, max_codepoint=0x6FF, categories=["Lo", "Nd"]), min_size=1),
       start=st.integers(0, 3), end=st.integers(0, 3))  # fmt: skip
def test_a_token_may_be_cut_inside_characters(text, start, end):
    code = text.encode()
    assert _ARABIC(code[start : len(code) - end])
    assert not _ARABIC(code + b"a")


_ARABIC = fits(["Arab"])


@pytest.mark.parametrize("code", ["xx", "english", "", "tlh"])
def test_a_language_without_a_known_script_asks_for_texts(code):
    with pytest.raises(LacosError, match=f"language {code!r} is not known: .* --corpus FILE"):
        scripts_of([code])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Trimming needs to know what to keep"),
        (["--corpus", "none.txt"], "none.txt cannot be read"),
        (["--languages", "fr", "xx"], "The script of the language 'xx' is not known"),
    ],
)
def test_mistakes_cost_no_loading(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["trim", "no-such-model", "out", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command(tiny_bloom, corpus, tmp_path, capsys):
    assert main(["trim", str(tiny_bloom), str(tmp_path / "out"), "--corpus", str(corpus), "--languages", "de"]) == 0
    told = capsys.readouterr().out
    assert "tokens stay, by texts and by script (Latn)." in told
    assert "texts give the same tokens" in told
    assert "smallest cosine 1.0000000" in told
    assert main(["trim", str(tiny_bloom), str(tmp_path / "out"), "--corpus", str(corpus)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_texts_count_wherever_they_lie_in_a_cell(tiny_bloom, tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": KEPT[0]}], "more": [[KEPT[1]], None, 3]}))
    report = trim_vocabulary(LacosSentenceTransformer(tiny_bloom), [file])
    assert report.texts == 3


def test_half_a_surrogate_pair_is_told_with_its_line(tiny_bloom, tmp_path, capsys):
    (tmp_path / "half.jsonl").write_text('{"text": "whole"}\n{"text": ["\\ud800 half"]}\n')
    assert main(["trim", str(tiny_bloom), str(tmp_path / "out"), "--corpus", str(tmp_path / "half.jsonl")]) == 2
    assert "half.jsonl:2: column 'text' contains half a surrogate pair" in capsys.readouterr().err


def test_texts_of_nothing_but_blanks_are_a_mistake(tiny_bloom, tmp_path, capsys):
    (tmp_path / "blank.txt").write_text("   \n\n")
    assert main(["trim", str(tiny_bloom), str(tmp_path / "out"), "--corpus", str(tmp_path / "blank.txt")]) == 2
    assert "There is not one text in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_texts_the_command_says_what_it_tried_instead(tiny_bloom, tmp_path, capsys):
    assert main(["trim", str(tiny_bloom), str(tmp_path / "out"), "--languages", "de"]) == 0
    told = capsys.readouterr().out
    assert "tokens stay, by script (Latn)." in told
    assert "tokens, taken as texts, give the same tokens" in told


@pytest.mark.parametrize("told", [[1, 512], [], "1", [True], [-1]])
def test_a_damaged_list_of_probed_tokens_is_said(told, tiny_gemma, tmp_path):
    LacosSentenceTransformer(tiny_gemma).save_pretrained(str(tmp_path / "model"))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lacos_probe": told}))
    with pytest.raises(LacosError, match=r"lacos_probe=.* must be token ids below 512"):
        LacosSentenceTransformer(tmp_path / "model")


def test_another_kind_of_tokenizer_is_refused(tiny_bloom, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = LacosSentenceTransformer(tiny_bloom)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.transformer.processor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(LacosError, match="this tokenizer is WordLevel"):
        trim_vocabulary(model, languages=["en"], show_progress=False)
