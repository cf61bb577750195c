import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@given(
    st.builds(
        LacosConfig,
        base=st.text(min_size=1),
        template=st.text().map(lambda text: text.replace("{text}", "") + "{text}"),
        learning_rate=st.floats(1e-12, 10, allow_nan=False),
        mask_margin=st.none() | st.floats(0, 2),
        max_steps=st.none() | st.integers(1, 10**9),
        train_data=st.lists(st.text()),
        overwrite=st.booleans(),
    )
)
def test_yaml_round_trip_is_exact(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    config.to_yaml(path)
    assert LacosConfig.from_yaml(path) == config


def test_line_breaks_of_all_scripts_survive():
    config = LacosConfig(train_data=["\x85", "\u2028", "日本語"], base="a\nb\tc")
    assert LacosConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_numbers_as_yaml_and_the_command_line_write_them():
    config = LacosConfig.from_dict({"learning_rate": "5e-4", "lora_rank": "8", "mask_margin": 0})
    assert (config.learning_rate, config.lora_rank, config.mask_margin) == (5e-4, 8, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"lora_rank": 2.5}, "lora_rank=2.5 must be a whole number"),
        ({"lora_rank": True}, "lora_rank=True"),
        ({"learning_rate": "fast"}, "learning_rate='fast' must be a finite number"),
        ({"learning_rate": float("nan")}, "must be a finite number"),
        ({"epochs": float("inf")}, "epochs=inf must be a finite number"),
        ({"batch_size": float("inf")}, "batch_size=inf must be a whole number"),
        ({"seed": 2**32}, "seed=4294967296 must be at most 4294967295"),
        ({"learning_rate": -1}, "learning_rate=-1.0 must be above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"pooling": "cls"}, "pooling='cls' is not one of weightedmean"),
        ({"template": "none"}, "must contain {text} exactly once"),
        ({"train_data": "file.csv"}, "train_data='file.csv' must be a list"),
        ({"overwrite": "yes"}, "overwrite='yes' must be true or false"),
        ({"base": 5}, "base=5 must be a text"),
        ({"lora_rnak": 8}, "Did you mean 'lora_rank'?"),
    ],
)
def test_invalid_values_are_named(values, message):
    with pytest.raises(LacosError) as raised:
        LacosConfig.from_dict(values)
    assert message in str(raised.value)


def test_a_recipe_that_cannot_be_read(tmp_path):
    with pytest.raises(LacosError, match="cannot be read"):
        LacosConfig.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("base: [1,")
    with pytest.raises(LacosError, match="no valid YAML"):
        LacosConfig.from_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(LacosError, match="must be a mapping"):
        LacosConfig.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert LacosConfig.from_yaml(tmp_path / "empty.yaml", lora_rank=2) == LacosConfig(lora_rank=2)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(recipe):
    assert LacosConfig.from_yaml(recipe).base.startswith("bigscience/bloom")


def test_there_is_a_recipe_for_each_size():
    assert {path.stem for path in RECIPES} >= {"bloom-560m", "bloom-1b1", "bloom-1b7", "bloom-3b", "bloom-7b1"}


def test_every_field_explains_itself():
    for item in dataclasses.fields(LacosConfig):
        assert item.metadata["help"], item.name
