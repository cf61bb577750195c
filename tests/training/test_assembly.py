"""A recipe becomes what it says; where it says nothing, the base decides."""

import pytest
from datasets import Dataset, DatasetDict

from lacos_st import LacosConfig, LacosSentenceTransformer
from lacos_st.errors import LacosError
from lacos_st.training.assembly import (
    RANK,
    adapter_settings,
    build_arguments,
    build_data,
    build_model,
    even_batches,
)


@pytest.fixture
def saved(tiny_bloom, tmp_path):
    LacosSentenceTransformer(tiny_bloom).save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_the_embedded_base_alone_has_settings_of_its_own(tiny_bloom, saved, tmp_path, monkeypatch):
    def adapter(base, **options):
        settings = adapter_settings(build_model(LacosConfig(base=str(base), **options)))
        return settings["lora_rank"], settings["lora_alpha"]

    usual = (RANK, 2 * RANK)
    assert [adapter(tiny_bloom), adapter(saved), adapter("bloom-mini")] == [usual, usual, (4, 8)]
    assert adapter("bloom-mini", lora_rank=5) == (5, 10)
    assert adapter(saved, lora_alpha=5) == (RANK, 5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").rename(tmp_path / "bloom-mini")  # a directory of one's own comes first
    assert adapter("bloom-mini") == usual


def test_an_adapter_that_is_there_contradicts_no_recipe_that_is_silent(saved, tmp_path, recwarn):
    LacosSentenceTransformer(saved).add_lora(rank=2, alpha=3, dropout=0.05).save(str(tmp_path / "trained"))
    found = adapter_settings(build_model(LacosConfig(base=str(tmp_path / "trained"))))
    assert (found["lora_rank"], found["lora_alpha"]) == (2, 3)
    assert not [warning for warning in recwarn if "has an adapter" in str(warning.message)]
    with pytest.warns(UserWarning, match="'lora_rank': 2"):
        build_model(LacosConfig(base=str(tmp_path / "trained"), lora_rank=3))


def test_the_adapter_is_as_the_recipe_says(saved):
    asked = {"lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.1, "lora_targets": ["dense", "dense_4h_to_h"]}
    assert adapter_settings(build_model(LacosConfig(base=saved, **asked))) == asked


def write_pairs(path, rows, negatives=0):
    header = ["anchor", "positive", *(f"negative_{i}" for i in range(negatives))]
    lines = [",".join(f"{path.stem} {name} {i}" for name in header) for i in range(rows)]
    path.write_text("\n".join([",".join(header), *lines]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("rows", "processes", "expected"),
    [
        (512, 2, (512, 64)),
        (500, 1, (496, 62)),
        (500, 2, (496, 62)),
        (13, 2, (12, 12)),
        (13, 1, (13, 13)),
        (1, 2, (1, 2)),
    ],
)
def test_held_out_batches_are_of_one_size(rows, processes, expected):
    held, size = even_batches(Dataset.from_dict({"anchor": ["a"] * rows}), 64, processes)
    assert (len(held), size) == expected


def test_evaluates_ten_times_in_the_batches_of_all_sources(tiny_bloom, tmp_path):
    parts = {
        name: Dataset.from_dict({"anchor": ["a"] * rows, "positive": ["b"] * rows})
        for name, rows in (("x", 65), ("y", 640))
    }
    config = LacosConfig(base=str(tiny_bloom), batch_size=16, epochs=2)  # 5 + 40 batches
    assert build_arguments(config, tmp_path, DatasetDict(parts), None, build_model(config)).eval_steps == 9


def test_a_source_smaller_than_a_batch_is_spoken_of(tmp_path, caplog):
    sizes = {"small": 30, "large": 80, "held": 5}
    small, large, held = (write_pairs(tmp_path / f"{name}.csv", rows) for name, rows in sizes.items())
    build_data(LacosConfig(train_data=[small, large], eval_data=[held], batch_size=64))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "small has 30 rows: not a batch of 64, and each batch is of one source. Write small files of one kind into one."
    ]


def test_held_out_rows_that_are_trained_on_are_counted(tmp_path, caplog):
    sizes = {"x": 80, "y": 70, "other": 10}
    x, y, other = (write_pairs(tmp_path / f"{name}.csv", rows, name == "x") for name, rows in sizes.items())
    build_data(LacosConfig(train_data=[x, y], eval_data=[other, y], batch_size=64))
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith("70 of the 80 rows of eval_data are training rows too")


def test_one_held_out_row_can_choose_nothing(tmp_path):
    x, one = (write_pairs(tmp_path / f"{name}.csv", rows) for name, rows in (("x", 80), ("one", 1)))
    with pytest.raises(LacosError, match=r"one\.csv\) has one row: its loss is always 0"):
        build_data(LacosConfig(train_data=[x], eval_data=[one]))


@pytest.mark.parametrize(
    ("header", "recipe", "message"),
    [
        ("sentence1,sentence2,score", {"min_score": 3}, "no source is read with scores"),
        ("first,second,note", {"columns": ["first", "second"]}, "has no column 'first'"),
    ],
)
def test_what_is_said_of_training_data_is_not_asked_of_eval_data(tmp_path, header, recipe, message):
    lines = [f"a{i},b{i},{i % 6}" for i in range(60)]
    (tmp_path / "x.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    pairs = write_pairs(tmp_path / "pairs.csv", 5)
    data, held = build_data(LacosConfig(train_data=[str(tmp_path / "x.csv")], eval_data=[pairs], **recipe))
    assert (data["x"].num_rows, held.num_rows) == (30 if "min_score" in recipe else 60, 5)
    with pytest.raises(LacosError, match=message):
        build_data(LacosConfig(train_data=[pairs], eval_data=[pairs], **recipe))


def test_columns_and_scores_of_eval_data_count_where_it_has_them(tmp_path):
    rows = "\n".join(f"a{i},b{i},{i % 6}" for i in range(60))
    (tmp_path / "x.csv").write_text(f"first,second,mark\n{rows}\n", encoding="utf-8")
    columns = ["anchor=first", "positive=second", "score=mark"]
    paths = [str(tmp_path / "x.csv")]
    _, held = build_data(LacosConfig(train_data=paths, eval_data=paths, columns=columns, min_score=5))
    assert held.num_rows == 10


def test_what_is_held_out_is_no_longer_counted(tmp_path, caplog):
    paths = [write_pairs(tmp_path / f"{name}.csv", 70) for name in ("x", "y")]
    data, held = build_data(LacosConfig(train_data=paths, batch_size=64))
    assert len(held) == 14
    assert [record.args[:2] for record in caplog.records if record.levelname == "WARNING"] == [
        (name, rows) for name, rows in data.num_rows.items() if rows < 64
    ]
    assert min(data.num_rows.values()) < 64
