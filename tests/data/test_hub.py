"""Hub data sets, and directories saved by `datasets`."""

import datasets
import pytest
from data_files import texts

from lacos_st.data.load import DataError, load_training_data


def test_directories_saved_by_datasets(tmp_path):
    pairs = datasets.Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    pairs.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": pairs, "dev": pairs.map(lambda row: {"anchor": "x"})}).save_to_disk(tmp_path / "two")
    assert texts(load_training_data(tmp_path / "one")) == [("a", "b")]
    assert texts(load_training_data(f"{tmp_path / 'two'}@1")) == [("a", "b")]


def test_hub_names_choose_subset_and_split(monkeypatch):
    asked = []

    def load(name, subset):
        asked.append((name, subset))
        return {
            split: datasets.Dataset.from_dict({"anchor": [split], "positive": [subset]}) for split in ("train", "dev")
        }

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["pair-score", "pair", "triplet"])
    assert texts(load_training_data("some/data")) == [("train", "triplet")]
    assert texts(load_training_data("some/data:pair:dev@1")) == [("dev", "pair")]
    assert asked == [("some/data", "triplet"), ("some/data", "pair")]
    with pytest.raises(DataError, match=r"no split 'test', but train, dev\. Choose one: some/data:pair:SPLIT"):
        load_training_data("some/data:pair:test")
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["de", "fr"])
    with pytest.raises(DataError, match=r"several subsets; choose one: some/data:SUBSET with de, fr"):
        load_training_data("some/data")


def test_hub_errors_are_one_line(monkeypatch):
    def offline(name, *_):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nmore")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    with pytest.raises(DataError, match=r"'some/data' cannot be loaded: Couldn't reach .*HF_HUB_OFFLINE unset"):
        load_training_data("some/data")

    def unknown(name, *_):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'some/data' doesn't exist")

    monkeypatch.setattr(datasets, "get_dataset_config_names", unknown)
    with pytest.raises(DataError, match=r"doesn't exist.*owner/name\[:subset"):
        load_training_data("some/data")


def test_a_bad_row_of_a_data_set_has_its_number(tmp_path):
    datasets.Dataset.from_dict({"anchor": ["a", None], "positive": ["b", "c"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"one, row 2: column 'anchor' is null"):
        load_training_data(tmp_path / "one")
