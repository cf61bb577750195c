"""What a model's card says, and that it never costs the model."""

import errno
import logging

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Module
from tiny import CORPUS, randomise

from lacos_st.errors import LacosError
from lacos_st.export.export import export
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.transformer import LacosTransformer

TEXTS = list(CORPUS[:4])
CARD = """---
license: cc-by-4.0
language: [fr, ar]
non_commercial_sources: [xnli]
---
# A base
"""


class FirstToken(Module):
    """A pooling of one's own, which is no `Pooling`."""

    def forward(self, features):
        features["sentence_embedding"] = features["token_embeddings"][:, 0].float()
        return features

    def get_embedding_dimension(self):
        return 64

    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path, **kwargs):
        return cls()


@pytest.fixture
def base(tiny_bloom, tmp_path):
    """A base whose card says what holds for all that is made of it."""
    import shutil

    shutil.copytree(tiny_bloom, tmp_path / "plain")
    (tmp_path / "plain" / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "plain"


@pytest.fixture
def hub(monkeypatch):
    """What would be uploaded, in place of the Hub."""
    seen = {}

    def upload(self, **kwargs):
        seen.update(kwargs, card=ModelCard.load(f"{kwargs['folder_path']}/README.md").content)
        return CommitInfo(
            commit_url="https://huggingface.co/me/lacos/commit/1", commit_message="", commit_description="", oid="", pr_url="https://huggingface.co/me/lacos/discussions/1",
            _endpoint=None,
        )  # fmt: skip

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return seen


def read(directory) -> str:
    return (directory / "README.md").read_text(encoding="utf-8")


def test_a_card_that_cannot_be_made_is_logged_and_the_model_saved(tiny_model, tmp_path, monkeypatch, caplog):
    def fails(*args):
        raise ZeroDivisionError("no card")

    for place in ("sentence_transformers.base.model.generate_model_card", "lacos_st.model.card.describe"):
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr(place, fails)
            tiny_model.save_pretrained(str(tmp_path / place))
        assert "no card" in caplog.text
        caplog.clear()
        loaded = LacosSentenceTransformer(tmp_path / place)
        np.testing.assert_array_equal(loaded.encode(TEXTS), tiny_model.encode(TEXTS))


def test_a_disk_that_does_not_take_the_card_is_still_an_error(tiny_model, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lacos_st.model.model.complete", full)
    with pytest.raises(LacosError, match="the disk is full"):
        tiny_model.save_pretrained(str(tmp_path / "model"))


def test_a_model_with_a_pooling_of_ones_own_is_saved_with_its_card(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(modules=[LacosTransformer(str(tiny_bloom)), FirstToken()])
    model.save_pretrained(str(tmp_path / "model"))
    assert "| pooling | FirstToken |" in read(tmp_path / "model")
    assert model.describe()["dimension"] == 64


def test_a_card_says_once_what_a_model_is_however_often_it_is_saved(tiny_model, tmp_path):
    directory = tmp_path / "first"
    randomise(tiny_model).save_pretrained(str(directory))
    for name in ("second", "third"):
        loaded = LacosSentenceTransformer(directory)
        loaded.save_pretrained(str(tmp_path / name))
        assert read(tmp_path / name) == read(directory)
        directory = tmp_path / name
    loaded.merge_adapter().save_pretrained(str(tmp_path / "merged"))
    card = read(tmp_path / "merged")
    assert card.count("## 8-bit LoRA") == card.count("| adapters |") == 1
    assert "| adapters | none |" in card
    assert 'SentenceTransformer("merged")' in card
    assert 'SentenceTransformer("first")' not in card


def test_a_trained_model_gets_another_card(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the trainer makes a directory for its checkpoints
    tiny_model.save_pretrained(str(tmp_path / "first"))
    loaded = LacosSentenceTransformer(tmp_path / "first", is_trainable=True)
    SentenceTransformerTrainer(loaded, train_dataset=Dataset.from_dict({"a": TEXTS, "b": TEXTS}))
    loaded.save_pretrained(str(tmp_path / "second"))
    assert "generated_from_trainer" in read(tmp_path / "second")
    assert read(tmp_path / "second").count("## 8-bit LoRA") == 1


def test_a_pushed_card_names_the_repository_everywhere(tiny_model, tmp_path, hub):
    tiny_model.save_pretrained(str(tmp_path / "local"))
    loaded = LacosSentenceTransformer(tmp_path / "local")
    for repository in ("me/first", "me/second"):
        assert loaded.push_to_hub(repository, replace_model_card=True) == "https://huggingface.co/me/lacos/commit/1"
        assert hub["card"].count(f'SentenceTransformer("{repository}")') == 3  # stock, lacos-st and ST's own Usage
        assert hub["card"].count('SentenceTransformer("') == 3
        assert hub["commit_description"] is None


def test_a_pull_request_tells_how_to_try_it_with_a_class_that_is_there(tiny_model, hub, tiny_bloom):
    assert (
        tiny_model.push_to_hub("me/lacos", create_pr=True, replace_model_card=True)
        == "https://huggingface.co/me/lacos/discussions/1"
    )
    told = hub["commit_description"]
    assert "from sentence_transformers import SentenceTransformer\n" in told
    assert 'model = SentenceTransformer(\n    "me/lacos",' in told
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"attention": "symmetric"})
    with pytest.warns(UserWarning, match="symmetric attention"):
        model.push_to_hub("me/lacos", create_pr=True, replace_model_card=True)
    assert "from lacos_st.model.model import LacosSentenceTransformer\n" in hub["commit_description"]
    assert "SentenceTransformer  # needs bitsandbytes" not in hub["card"]
    assert "cannot express its symmetric attention, and does not load it" in hub["card"]


def test_a_card_tells_what_the_base_tells_and_links_no_local_one(base, tmp_path):
    model = LacosSentenceTransformer(base).add_lora(rank=2)
    model.save_pretrained(str(tmp_path / "model"))
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("cc-by-4.0", ["fr", "ar"], None)
    assert "huggingface.co/plain" not in card.content
    assert "- **Base model:** plain\n" in card.content
    assert "Unknown](" not in card.content
    # what is made of it says so too, and a licence of the user's own stays
    loaded = LacosSentenceTransformer(tmp_path / "model")
    assert loaded.describe()["licence"] == "cc-by-4.0; learnt from non-commercial sources too: xnli"
    loaded.model_card_data.license, loaded._model_card_text = "mit", ""
    loaded.merge_adapter().save_pretrained(str(tmp_path / "merged"))
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.license, card.data.language) == ("mit", ["fr", "ar"])
    assert "| licence | cc-by-4.0; learnt from non-commercial sources too: xnli |" in card.content


def test_a_card_names_base_and_data_on_the_hub(tiny_model, tmp_path):
    tiny_model[0].base, tiny_model[0].save_base = {"name": "bigscience/bloom-560m", "revision": "abc"}, False
    tiny_model.training_record = {
        "recipe": {"train_data": ["sentence-transformers/all-nli:triplet", str(tmp_path / "mine.csv")]},
        "steps": 1, "rows": 2, "seconds": 3, "device": "CPU", "peak_bytes": 4, "best_step": 1,
        "scores_before": {}, "scores_after": {},
    }  # fmt: skip
    tiny_model.save_pretrained(str(tmp_path / "model"))
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.base_model == "bigscience/bloom-560m"
    assert card.data.datasets == ["sentence-transformers/all-nli"]
    assert "[bigscience/bloom-560m](https://huggingface.co/bigscience/bloom-560m)" in card.content
    assert "## LACoS training\n\n1 steps over 2 rows" in card.content


@pytest.mark.parametrize("name", ["bloom-mini", "lacos-bloom"])
def test_the_embedded_models_name_their_non_commercial_sources(name):
    told = LacosSentenceTransformer(name).describe()["licence"]
    assert told == "apache-2.0; learnt from non-commercial sources too: xnli, mahaparaphrase"


def test_non_commercial_sources_go_with_an_export_and_what_is_made_of_it(tmp_path):
    export("lacos-bloom", tmp_path / "exported")
    again = LacosSentenceTransformer(tmp_path / "exported")
    assert again.describe()["licence"].endswith("learnt from non-commercial sources too: xnli, mahaparaphrase")
    again.save_pretrained(str(tmp_path / "again"))
    assert read(tmp_path / "again").count("non_commercial_sources") == 1
    data = ModelCard.load(tmp_path / "again" / "README.md").data
    assert (data.license, data.non_commercial_sources) == ("apache-2.0", "xnli, mahaparaphrase")


def test_what_stock_classes_break_is_what_the_card_says(tiny_bloom, tmp_path):
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    model.save_pretrained(str(tmp_path / "whole"))
    assert "stock classes write the adapter without its base, and that cannot be loaded" in read(tmp_path / "whole")
    SentenceTransformer(str(tmp_path / "whole")).save_pretrained(str(tmp_path / "lost"))
    with pytest.raises(OSError, match="name of this repository"):
        SentenceTransformer(str(tmp_path / "lost"))
    with pytest.raises(LacosError, match=r"Stock classes saved .*lost' and left its base behind"):
        LacosSentenceTransformer(tmp_path / "lost")

    model.merge_adapter().save_pretrained(str(tmp_path / "merged"))
    assert "raises NotImplementedError" in read(tmp_path / "merged")
    with pytest.raises(NotImplementedError):
        SentenceTransformer(str(tmp_path / "merged")).save_pretrained(str(tmp_path / "nothing"))

    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    model.save_pretrained(str(tmp_path / "full"))
    assert "encodes with it, trains it and saves it" in read(tmp_path / "full")
    SentenceTransformer(str(tmp_path / "full")).save_pretrained(str(tmp_path / "again"))
    again = LacosSentenceTransformer(tmp_path / "again", transformer_options={"quantization": "none"})
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
