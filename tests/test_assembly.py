"""A recipe becomes what it says; where it says nothing, the base decides."""

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from lacos_st import LacosConfig, LacosSentenceTransformer
from lacos_st.assembly import (
    EMBEDDING_RATE,
    PLAIN_RATE,
    adapter_settings,
    build_arguments,
    build_data,
    build_model,
)


@pytest.fixture
def saved(tiny_bloom, tmp_path):
    LacosSentenceTransformer(tiny_bloom).save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_a_base_that_makes_embeddings_already_learns_slowly(tiny_bloom, saved, tmp_path):
    def rate(base, **options):
        config = LacosConfig(base=str(base), **options)
        data = DatasetDict({"rows": Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})})
        return build_arguments(config, tmp_path, data, None, build_model(config)).learning_rate

    assert [rate(tiny_bloom), rate(saved), rate("bloom-mini")] == [PLAIN_RATE, EMBEDDING_RATE, EMBEDDING_RATE]
    assert rate(saved, learning_rate=1e-3) == 1e-3


def test_the_adapter_is_as_the_recipe_says(saved):
    asked = {"lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.1, "lora_targets": ["dense", "dense_4h_to_h"]}
    assert adapter_settings(build_model(LacosConfig(base=saved, **asked))) == asked


def write_pairs(path, rows, negatives=0):
    header = ["anchor", "positive", *(f"negative_{i}" for i in range(negatives))]
    lines = [",".join(f"{path.stem} {name} {i}" for name in header) for i in range(rows)]
    path.write_text("\n".join([",".join(header), *lines]) + "\n", encoding="utf-8")
    return str(path)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) >= 20), st.integers(0, 3))
def test_what_is_held_out_is_not_trained_on(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("sources")
    paths = [write_pairs(folder / f"{i}.csv", rows, negatives=i % 2 + 1) for i, rows in enumerate(sizes)]
    data, held = build_data(LacosConfig(train_data=paths, seed=seed))
    assert held.column_names == ["anchor", "positive", "negative"]
    assert len(held) == sum(sizes) // 10
    trained = [text for part in data.values() for text in part["anchor"][:]]
    assert sorted([*trained, *held["anchor"][:]]) == sorted(
        f"{i} anchor {row}" for i, rows in enumerate(sizes) for row in range(rows)
    )
    assert all(len(part) for part in data.values())


def test_a_row_that_occurs_twice_is_held_out_twice(tmp_path):
    path = write_pairs(tmp_path / "x.csv", 60)
    data, held = build_data(LacosConfig(train_data=[f"{path}@2"]))
    assert len(held) == 12
    assert not set(held["anchor"][:]) & set(data["x"]["anchor"][:])
    assert len(data["x"]) == 120 - 2 * len(set(held["anchor"][:]))


def test_a_source_smaller_than_a_batch_is_spoken_of(tmp_path, caplog):
    small, large = (write_pairs(tmp_path / f"{name}.csv", rows) for name, rows in (("small", 30), ("large", 80)))
    build_data(LacosConfig(train_data=[small, large], batch_size=64))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "small has 30 rows: not a batch of 64, and each batch is of one source. Put small sources together."
    ]
