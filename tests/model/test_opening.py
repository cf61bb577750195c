"""What is checked where a model's directory is opened: old layouts load, and what is wrong is one error with a name."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import CNN, Dense, Normalize, Pooling, Router
from tiny import CORPUS, randomise
from transformers import AutoModel, BitsAndBytesConfig, GPTQConfig, PreTrainedConfig

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.names import base_config, is_decoder
from lacos_st.model.opening import load_adapter
from lacos_st.model.transformer import LacosTransformer

TEXTS = list(CORPUS[:4])


@pytest.fixture(scope="module")
def saved(tiny_bloom, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    model.append(Dense(model.get_embedding_dimension(), 8))
    model.save_pretrained(str(directory))
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change(file, **values):
    told = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**told, **values}), encoding="utf-8")


# -- layouts of other versions and other modules ---------------------------------------------------------------


def test_a_model_that_an_older_sentence_transformers_saved_loads_as_stock_loads_it(tiny_bloom, tmp_path):
    transformer = Transformer(str(tiny_bloom))
    modules = [transformer, Pooling(64, "mean"), Dense(64, 8), Normalize()]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path))
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")  # as before version 5.4
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    listing = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listing))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}')
    old = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(old))
    shutil.rmtree(tmp_path / "3_Normalize")  # it had no settings, and Git keeps no empty folder
    stock = SentenceTransformer(str(tmp_path))
    ours = LacosSentenceTransformer(str(tmp_path), transformer_options={"quantization": "none"})
    assert isinstance(ours[0], LacosTransformer)
    np.testing.assert_allclose(ours.encode(TEXTS), stock.encode(TEXTS), atol=1e-5)
    assert LacosSentenceTransformer(str(tmp_path))[0].quantization == "int8"
    (tmp_path / "0_Transformer").mkdir()  # as before version 2
    for file in tmp_path.glob("*.*"):
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(tmp_path / "0_Transformer" / file.name)
    (tmp_path / "modules.json").write_text(json.dumps([listing[0] | {"path": "0_Transformer"}, *listing[1:]]))
    oldest = LacosSentenceTransformer(str(tmp_path), transformer_options={"quantization": "none"})
    np.testing.assert_array_equal(oldest.encode(TEXTS), ours.encode(TEXTS))


@pytest.mark.parametrize("kind", ["router", "cnn"])
def test_modules_with_a_settings_file_of_another_name_are_whole(kind, tiny_bloom, tmp_path):
    transformer = LacosTransformer(str(tiny_bloom))
    if kind == "cnn":
        modules = [transformer, CNN(64, 8, [1, 3]), Pooling(16, "mean")]
    else:
        modules = [transformer, Pooling(64, "mean"), Router.for_query_document([Dense(64, 8)], [Dense(64, 8)])]
    model = LacosSentenceTransformer(modules=modules)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = LacosSentenceTransformer(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.encode(TEXTS), model.encode(TEXTS), atol=1e-6)  # by one thread or two
    settings = next((tmp_path / "model").glob(f"*/{kind}_config.json"))
    settings.unlink()
    with pytest.raises(LacosError, match=rf"not whole \(.*{kind}_config.json is missing\)"):
        LacosSentenceTransformer(str(tmp_path / "model"))


# -- what a directory may not say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("config.json", {"n_layer": 10_000_000}, "10,000,000"),
        ("config.json", {"n_layer": 3}, "there is no 'h.2"),
        ("config.json", {"n_layer": 1}, "'h.1.* is no part of it"),
        ("config.json", {"hidden_size": 10**6}, "1000000"),
        ("config.json", {"vocab_size": 10**18}, "config.json"),
        ("config.json", {"hidden_size": "64"}, "hidden_size"),
        ("config.json", {"n_head": 7}, "num_heads"),
        ("config.json", {"seq_length": "long"}, "seq_length"),
        ("config.json", {"dtype": "load"}, "'load'"),
        ("config.json", {"model_type": 3}, "model_type"),
        ("config.json", {"quantization_config": None}, "I8"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "4 bits"),
        ("config.json", {"quantization_config": ["int8"]}, "quantization_config"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "someone/kernel"),
        ("config.json", {"text_config": {"_attn_implementation": "someone/kernel"}}, "someone/kernel"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**9}}, "no model has more than"),
        ("config.json", {"compression_config": {"quant_method": "x"}}, "compression_config"),
        ("lacos.json", {"adapters": "default"}, "adapters"),
        ("lacos.json", {"adapters": ["../../other"]}, "other"),
        ("lacos.json", {"unknown": 1}, "unknown"),
        ("lacos.json", {"template": "no text"}, "no text"),
        ("lacos.json", {"training_form": 3}, "training_form"),
        ("adapter/adapter_config.json", {"r": 10**9}, "shape"),
        ("adapter/adapter_config.json", {"r": "2"}, "'str'"),
        ("adapter/adapter_config.json", {"target_modules": ["dense"]}, "self_attention"),
        ("adapter/adapter_config.json", {"megatron_config": {}, "megatron_core": "antigravity"}, "megatron_config"),
        ("sentence_bert_config.json", {"model_kwargs": {"attn_implementation": "someone/kernel"}}, "someone/kernel"),
        ("sentence_bert_config.json", {"model_kwargs": {"use_kernels": True}}, "use_kernels"),
        ("sentence_bert_config.json", {"model_kwargs": {"weights_only": False}}, "weights_only"),
        ("sentence_bert_config.json", {"model_args": {"quantization_config": {"load_in_4bit": True}}}, "4 bits"),
        ("sentence_bert_config.json", {"config_kwargs": {"n_layer": 10_000_000}}, "n_layer"),
        ("sentence_bert_config.json", {"processor_kwargs": {"code_revision": "main"}}, "code_revision"),
        ("sentence_bert_config.json", {"max_seq_length": "32"}, "max_seq_length"),
        ("2_Dense/config.json", {"in_features": 10**9}, "size mismatch"),
        ("2_Dense/config.json", {"module_input_name": ["a"]}, "module_input_name"),
        ("2_Dense/config.json", {"activation_function": "torch.load"}, "torch.nn.Module class"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "prompts"),
        ("config_sentence_transformers.json", {"__version__": {"sentence_transformers": "x"}}, "version"),
        ("tokenizer_config.json", {"padding_side": 3}, "padding_side"),
        ("tokenizer.json", {"model": 3}, "cannot be loaded"),
    ],
)
def test_what_a_directory_may_not_say_is_one_error_with_the_files_name(file, values, told, copy):
    change(copy / file, **values)
    with pytest.raises(LacosError, match=told) as caught:
        LacosSentenceTransformer(str(copy))
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"type": 3}, "type"),
        ({"type": "sentence_transformers.util.import_from_string"}, "no module"),
        ({"type": "sentence_transformers.nowhere.Dense"}, "nowhere"),
        ({"path": "../other"}, "must lie in the model's directory"),
        ({"path": "elsewhere"}, "elsewhere"),
        ({"path": ""}, "where no module is"),
        ({"name": "forward"}, "a name of its own"),
        ({"name": "0"}, "a name of its own"),
        ({"type": "modeling.Dense"}, "trust_remote_code=True"),
        ({"type": "Dense"}, "which is no class"),
        ({"type": ""}, "which is no class"),
    ],
)
def test_modules_that_a_listing_may_not_name(entry, told, copy):
    listing = json.loads((copy / "modules.json").read_text())
    listing[1] |= entry
    (copy / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(LacosError, match=told) as caught:
        LacosSentenceTransformer(str(copy))
    assert "modules.json" in str(caught.value)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "adapter/adapter_model.safetensors", "2_Dense/model.safetensors"]
)
def test_tensors_of_other_shapes_are_refused_before_anything_is_built(file, copy, monkeypatch):
    tensors = load_file(copy / file)
    key = sorted(tensors)[-1]
    save_file({**tensors, key: tensors[key].flatten()[:1].clone()}, copy / file)
    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    with pytest.raises(LacosError, match="shape") as caught:
        LacosSentenceTransformer(str(copy))
    assert Path(file).name in str(caught.value)


def test_code_beside_a_model_is_not_run(copy):
    mark = copy / "ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nConfig = Model = Tokenizer = None\n"
    (copy / "evil.py").write_text(code)
    classes = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    change(copy / "config.json", auto_map=classes, custom_pipelines={"x": {"impl": "evil.Model"}})
    LacosSentenceTransformer(str(copy))
    change(copy / "tokenizer_config.json", auto_map=classes, tokenizer_class="Tokenizer")
    with pytest.raises(LacosError, match=r"tokenizer_config\.json"):
        LacosSentenceTransformer(str(copy))
    assert not mark.exists()


def test_a_config_on_the_hub_is_checked_as_one_in_a_directory(tiny_bloom, monkeypatch):
    config = json.loads((tiny_bloom / "config.json").read_text())
    told = {**config, "_attn_implementation": "someone/kernel"}
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", classmethod(lambda cls, name, **kwargs: (told, {})))
    with pytest.raises(LacosError, match=r"owner/bloom/config\.json.*someone/kernel"):
        LacosTransformer("owner/bloom")


def test_commands_that_only_look_at_a_directory_meet_no_traceback(copy):
    for content in ("[]", '{"model_type": "bloom", "hidden_size": []}', "{"):
        (copy / "config.json").write_text(content)
        with pytest.raises(LacosError, match="There is no model"):
            base_config(str(copy))
    (copy / "lacos.json").unlink()
    (copy / "config.json").write_text("[]")
    assert not is_decoder(str(copy))


# -- what a user asks for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BitsAndBytesConfig(load_in_4bit=True), GPTQConfig(bits=4)])
def test_other_quantization_is_refused_on_loading(config, tiny_bloom):
    with pytest.raises(LacosError, match=r"model_kwargs.*(4 bits|gptq)"):
        LacosSentenceTransformer(tiny_bloom, model_kwargs={"quantization_config": config})


@pytest.mark.parametrize("backend", ["onnx", "openvino", "nonsense"])
def test_another_backend_is_an_error_for_a_plain_checkpoint_too(backend, tiny_bloom, saved):
    for directory in (tiny_bloom, saved):
        with pytest.raises(LacosError, match=f"backend='{backend}'"):
            LacosSentenceTransformer(str(directory), backend=backend)


@pytest.mark.parametrize("beside", [True, False])
def test_code_of_a_model_or_of_a_package_runs_when_it_is_trusted_and_not_before(
    beside, copy, tmp_path, monkeypatch, capfd
):
    code = "from sentence_transformers.sentence_transformer.modules import Normalize\nprint('it ran')\n"
    code += "class Own(Normalize):\n    pass\n"
    module = "beside_it" if beside else "of_a_package"
    (copy if beside else tmp_path).joinpath(f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    listing = json.loads((copy / "modules.json").read_text())
    (copy / "9_Own").mkdir()
    listing.append({"idx": len(listing), "name": "9", "path": "9_Own", "type": f"{module}.Own"})
    (copy / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(LacosError, match=rf"names '{module}\.Own', .* or of an installed package, so it was refused"):
        LacosSentenceTransformer(copy)
    assert "it ran" not in capfd.readouterr().out
    assert type(LacosSentenceTransformer(copy, trust_remote_code=True)[-1]).__name__ == "Own"
    assert "it ran" in capfd.readouterr().out


@pytest.mark.parametrize("trust", [True, False])
def test_trust_in_code_is_passed_on_for_a_plain_checkpoint(trust, tiny_bloom, monkeypatch):
    asked = []

    def note(self, name, **kwargs):
        asked.extend(kwargs[key]["trust_remote_code"] for key in ("model_kwargs", "processor_kwargs", "config_kwargs"))
        raise LacosError("seen")

    monkeypatch.setattr(LacosTransformer, "__init__", note)
    with pytest.raises(LacosError, match="seen"):
        LacosSentenceTransformer(tiny_bloom, trust_remote_code=trust)
    assert asked == [trust] * 3


def test_out_of_memory_is_said_as_it_is(tiny_bloom, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(AutoModel, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate"):
        LacosSentenceTransformer(tiny_bloom)


@pytest.mark.parametrize("place", ["cuda", "cuda:1", 0, {"": 0}, {"": "cuda"}])
def test_a_gpu_that_is_not_there_is_named(place, tiny_bloom):
    with pytest.raises(LacosError, match=r"device_map=.* asks for a GPU"):
        LacosSentenceTransformer(tiny_bloom, model_kwargs={"device_map": place})


@pytest.mark.parametrize("name", ["models/mine", "~/models/mine", "a b/c?"])
def test_a_directory_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with pytest.raises(LacosError, match="There is no directory") as caught:
        LacosSentenceTransformer(name)
    assert name.lstrip("~") in str(caught.value)


def test_a_directory_in_the_home_folder_is_found(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.setenv("USERPROFILE", str(saved.parent))
    assert LacosSentenceTransformer("~/model").get_embedding_dimension() == 8


def test_a_second_adapter_loads_without_talk_of_new_weights(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom).add_lora(rank=2).add_lora(rank=3, name="second")
    model.set_adapter("default")
    model.save_pretrained(str(tmp_path / "model"))
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    try:
        loaded = LacosSentenceTransformer(str(tmp_path / "model"))
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert loaded.transformer.adapter_names == ["default", "second"]
    assert not [text for text in said if "newly initialized" in text]


def test_a_further_adapter_that_lacks_tensors_is_an_error(saved, tmp_path):
    model = LacosSentenceTransformer(str(saved))
    third = shutil.copytree(saved / "adapter", tmp_path / "third")
    tensors = load_file(third / "adapter_model.safetensors")
    save_file({key: value for key, value in tensors.items() if "h.0" not in key}, third / "adapter_model.safetensors")
    with pytest.raises(LacosError, match=r"'third' .* lacks 'h\.0"):
        load_adapter(model[0].model, str(third), "third", "")


def test_a_class_of_a_newer_version_is_no_matter_of_trust(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "model"))
    listing = tmp_path / "model" / "modules.json"
    entries = json.loads(listing.read_text())
    entries[1]["type"] = "lacos_st.LacosSomethingNew"
    listing.write_text(json.dumps(entries))
    for trusted in (False, True):
        with pytest.raises(LacosError, match=r"names 'lacos_st\.LacosSomethingNew', which this version"):
            LacosSentenceTransformer(tmp_path / "model", trust_remote_code=trusted)
