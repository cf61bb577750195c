"""push_to_hub and loading against a stand-in of the Hub, both forms; and what a card's metadata go through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_standin import TOKEN, hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from lacos_st.training.measure import Measure


@pytest.fixture(scope="module")
def pushed(tiny_bloom, tmp_path_factory):
    """(the stand-in after all uploads, what the process found)."""
    output = tmp_path_factory.mktemp("hub")
    with hub() as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": server.url, "HF_HOME": str(output / "cache"), "HF_HUB_OFFLINE": "0", "STAND_IN_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",  # large files go by the LFS protocol
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]),
        }  # fmt: skip
        script = Path(__file__).with_name("push_and_load.py")
        done = subprocess.run(
            [sys.executable, str(script), str(tiny_bloom), str(output)],
            env=environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield server, json.loads((output / "found.json").read_text(encoding="utf-8"))


def test_what_comes_back_gives_the_same_embeddings(pushed):
    found = pushed[1]
    for repository in ("me/adapter", "me/whole"):
        assert found[f"{repository} LacosSentenceTransformer"][0] == 0
        assert found[f"{repository} SentenceTransformer"][1] > 0.999  # in the form that stock computes in
    assert found["own"] == 0


def test_an_adapter_goes_without_its_base_and_a_whole_model_with_it(pushed):
    server, found = pushed
    adapter, whole = server.repos["me/adapter"], server.repos["me/whole"]
    assert "model.safetensors" not in adapter
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "someone/tiny-bloom"
    assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= set(whole)
    assert json.loads(whole["adapter/adapter_config.json"])["base_model_name_or_path"] == "me/whole"
    assert sum(map(len, adapter.values())) < sum(map(len, whole.values()))
    assert any(call.startswith("PUT /lfs/") for call in server.calls)
    assert [url.split("/commit/")[0] for url in found["urls"]] == [f"{server.url}/me/{n}" for n in ("adapter", "whole")]
    for name in ("adapter", "whole"):
        card = server.repos[f"me/{name}"]["README.md"].decode()
        assert card in server.cards
        assert card.count(f'SentenceTransformer("me/{name}")') == 3
        assert ModelCard(card).data.base_model == "someone/tiny-bloom"


def test_what_nobody_else_could_load_is_not_uploaded(pushed):
    server, found = pushed
    assert "401" in found["refused"]
    alone, by_reference, unnamed = found["refusals"]
    assert "'tiny-bloom' is not on the Hub: nobody else could load it. Leave self_contained out" in alone
    assert "by-reference' is an adapter whose base lies in '/" in by_reference
    assert "self_contained=True" in by_reference
    assert "Save it with model_name='owner/name'" in unnamed
    assert "me/none" not in server.repos
    assert "me/refused" not in server.repos


@pytest.fixture
def card(tiny_model, tmp_path):
    """The card of a model that was trained and measured, with all that can be known of it."""
    from datasets import Dataset

    pairs = Dataset.from_dict({"anchor": [f"ask {i}" for i in range(12)], "positive": [f"say {i}" for i in range(12)]})
    tiny_model[0].base = {"name": "someone/tiny", "revision": "abc", "license": "apache-2.0", "language": "en, fr, ar"}
    tiny_model[0].save_base = False
    after = Measure(pairs, 8, 0)(tiny_model)
    EmbeddingSimilarityEvaluator(["a", "b", "c"], ["d", "e", "f"], [0.0, 0.5, 1.0], name="sts17-en-en")(tiny_model)
    tiny_model.training_record = {
        "recipe": {"train_data": ["sentence-transformers/all-nli:triplet"], "lora_rank": 4},
        "steps": 1, "rows": 2, "seconds": 3, "device": "NVIDIA H200", "peak_bytes": 2**30, "best_step": 1,
        "scores_before": {}, "scores_after": {},
        "held_out": {"queries": 12, "texts": 12, "before": {"accuracy@1": 8.0}, "after": after},
    }  # fmt: skip
    tiny_model.save_pretrained(str(tmp_path / "model"), model_name="me/model")
    return tmp_path / "model" / "README.md"


def test_a_card_goes_through_huggingface_hub_unchanged(card):
    metadata = metadata_load(card)
    told = {
        "license": "apache-2.0", "language": ["en", "fr", "ar"], "base_model": "someone/tiny",
        "pipeline_tag": "sentence-similarity", "library_name": "sentence-transformers",
        "datasets": ["sentence-transformers/all-nli"],
    }  # fmt: skip
    assert told.items() <= metadata.items()
    again = ModelCardData(ignore_metadata_errors=False, **metadata)
    assert again.to_dict() == metadata
    text = card.read_text(encoding="utf-8")
    assert ModelCard.load(card, ignore_metadata_errors=False).content == text

    # the results, one by one
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert results == again.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    assert eval_results_to_model_index(name, results) == metadata["model-index"]
    measured = {(result.dataset_type, result.metric_type) for result in results}
    wanted = {("sts17-en-en", "spearman_cosine"), ("held-out", "cosine_accuracy@1"), ("held-out", "cosine_mrr@10")}
    assert wanted <= measured


def test_a_card_tells_recipe_data_hardware_memory_and_use(card):
    text = card.read_text(encoding="utf-8")
    for said in (
        "lora_rank: 4", "Data: sentence-transformers/all-nli:triplet", "on NVIDIA H200, peak memory 1.0 GiB",
        "| in memory |", 'model = SentenceTransformer("me/model")', 'model = LacosSentenceTransformer("me/model")',
        "| held-out rows, 12 queries among 12 texts | before | after |",
    ):  # fmt: skip
        assert said in text


def test_an_adapter_of_a_local_base_says_that_nobody_else_can_load_it(tiny_model, tmp_path):
    tiny_model.save(str(tmp_path / "model"), self_contained=False)
    assert "nobody else can load it" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
