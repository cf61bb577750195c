"""The template stands around every text, in stock sentence-transformers as well."""

import pytest
from conftest import CORPUS
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from lacos_st.errors import LacosError
from lacos_st.model import LacosSentenceTransformer
from lacos_st.pooling import LacosPooling
from lacos_st.transformer import LacosTransformer

PROMPT_EOL = 'This sentence : "{text}" means in one word:"'


@pytest.mark.parametrize("template", ["{text}</s>", PROMPT_EOL, "<s>{text}", 'x: $A "{text}" :0'])
def test_template_is_what_the_tokenizer_does(template, tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"template": template})
    prefix, _, suffix = template.partition("{text}")
    plain = AutoTokenizer.from_pretrained(tiny_bloom)
    parts = [plain.encode(part, add_special_tokens=False) for part in (prefix, CORPUS[0], suffix)]
    ids = model.preprocess([CORPUS[0]])["input_ids"][0].tolist()
    assert ids == parts[0] + parts[1] + parts[2]
    model.max_seq_length = len(parts[0]) + len(parts[2]) + 2
    truncated = model.preprocess([CORPUS[0]])["input_ids"][0].tolist()
    assert truncated == parts[0] + parts[1][:2] + parts[2]
    model.save_pretrained(str(tmp_path / "model"))
    assert LacosSentenceTransformer(tmp_path / "model")[0].template == template
    stock = SentenceTransformer(str(tmp_path / "model"))
    assert stock.preprocess([CORPUS[0]])["input_ids"][0].tolist() == truncated


def test_each_text_of_a_pair_gets_the_template(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"template": PROMPT_EOL})
    one, two = (model.preprocess([text])["input_ids"][0].tolist() for text in CORPUS[:2])
    assert model.preprocess([CORPUS[:2]])["input_ids"][0].tolist() == one + two
    model.save_pretrained(str(tmp_path / "model"))
    stock = SentenceTransformer(str(tmp_path / "model"))
    assert stock.preprocess([CORPUS[:2]])["input_ids"][0].tolist() == one + two


def test_template_must_leave_room(tiny_bloom):
    with pytest.raises(LacosError, match="leaves no room"):
        LacosSentenceTransformer(tiny_bloom, transformer_options={"template": PROMPT_EOL, "max_seq_length": 5})
    with pytest.raises(LacosError, match="exactly once"):
        LacosSentenceTransformer(tiny_bloom, transformer_options={"template": "{text}{text}"})


def test_template_before_the_text_contradicts_leaving_the_prompt_out(tiny_bloom):
    transformer = LacosTransformer(str(tiny_bloom), template=PROMPT_EOL)
    with pytest.raises(LacosError, match="include_prompt=False"):
        LacosSentenceTransformer(
            modules=[transformer, LacosPooling(transformer.get_embedding_dimension(), include_prompt=False)]
        )
