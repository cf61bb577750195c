"""The template stands around every text, in stock sentence-transformers as well."""

import shutil

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import CORPUS
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer

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


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_a_model_of_stock_classes_keeps_what_its_tokenizer_adds(prompt, tiny_bloom, tmp_path):
    stock = SentenceTransformer(modules=[Transformer(str(tiny_bloom)), Pooling(64)])
    for name, single in (("nothing", "$A"), ("start", "<s> $A"), ("both", "<s> <s> $A </s>")):
        pieces = [("<s>", 1), ("</s>", 2)]
        stock.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=pieces)
        stock.save_pretrained(str(tmp_path / name))
        ours = LacosSentenceTransformer(tmp_path / name)
        assert ours[0].template == single.replace(" ", "").replace("$A", "{text}")
        for text in (CORPUS[0], "guitar"):
            features = stock.preprocess([text], prompt=prompt)
            assert ours.preprocess([text], prompt=prompt)["input_ids"].tolist() == features["input_ids"].tolist()
    if prompt:  # what stands before a prompt counts with it, as in stock
        marked = ours.preprocess(["guitar"], prompt="query:")
        length = stock.preprocess(["guitar"], prompt="query:")["prompt_length"]
        assert marked["prompt_length"] == int(marked["prompt_mask"].sum()) == length


def test_the_template_of_a_plain_checkpoint_is_not_lost_to_a_chat_template(tiny_bloom, tmp_path):
    shutil.copytree(tiny_bloom, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bloom)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    ours = LacosSentenceTransformer(tmp_path / "chat")
    assert ours.tokenizer.decode(ours.preprocess(["guitar"])["input_ids"][0]) == "guitar</s>"
    stock = SentenceTransformer(modules=[Transformer(str(tmp_path / "chat")), Pooling(64)])  # formats chats
    stock.save_pretrained(str(tmp_path / "stock"))
    chats = ["guitar", [{"role": "user", "content": "music"}]]
    for chat in chats:
        ids = LacosSentenceTransformer(tmp_path / "stock").preprocess([chat], prompt="query: ")["input_ids"]
        assert ids.tolist() == stock.preprocess([chat], prompt="query: ")["input_ids"].tolist()


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
