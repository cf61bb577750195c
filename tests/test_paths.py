"""A leading `~` is the home directory wherever a user writes a path; what is wrong with a file is said."""

import csv
from types import SimpleNamespace

import datasets
import pytest

import lacos_st.cli.commands
from lacos_st.cli import main
from lacos_st.config import LacosConfig
from lacos_st.data.load import DataError, load_training_data


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


COMMANDS = [
    ("encoding.encode.encode_file", "encode ~/m ~/texts.txt --output=~/out.npy", ["m", "texts.txt", "out.npy"]),
    (
        "evaluation.evaluate.evaluate",
        "evaluate ~/a ~/b --data-dir=~/sts --output=~/results",
        ["a", "b", "sts", "results"],
    ),
    ("evaluation.report.write_report", "report ~/a ~/b --output=~/page.html", ["a", "b", "page.html"]),
    ("evaluation.overlap.check_overlap", "check-overlap ~/train.csv --data-dir=~/sts", ["train.csv", "sts"]),
    ("embedded.unpack.unpack", "init ~/mine", ["mine"]),
    ("export.export.export", "export ~/m ~/out", ["m", "out"]),
    (None, "merge ~/m ~/merged", ["m", "merged"]),
]


@pytest.mark.parametrize(("function", "line", "paths"), COMMANDS)
def test_every_command_reads_the_home_directory(home, monkeypatch, function, line, paths):
    seen = []
    (home / "sts").mkdir()
    (home / "texts.txt").write_text("read before a model is loaded\n", encoding="utf-8")

    def called(*given, **options):
        seen.extend([*given, *options.values()])
        return []

    model = SimpleNamespace(merge_adapter=lambda: SimpleNamespace(save_pretrained=called))
    monkeypatch.setattr(lacos_st.cli.commands, "_load", lambda name: (seen.append(name), model)[1])
    if function:
        monkeypatch.setattr(f"lacos_st.{function}", called)
        monkeypatch.setattr("lacos_st.evaluation.tables.text", str)
    assert main(line.split()) == 0
    flat = [str(item) for value in seen for item in (value if isinstance(value, list) else [value])]
    assert {str(home / path) for path in paths} <= set(flat)
    assert not [text for text in flat if "~" in text]


def test_a_recipe_reads_the_home_directory(home, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: ~/mine\nbase: ~/base\ntrain_data: [~/a.csv@2, owner/name]\neval_data: [~/b.csv]\n")
    config = LacosConfig.from_yaml(recipe)
    assert (config.output, config.base) == (f"{home}/mine", f"{home}/base")
    assert (config.train_data, config.eval_data) == ([f"{home}/a.csv@2", "owner/name"], [f"{home}/b.csv"])
    assert LacosConfig(output="mine~").output == "mine~"


def test_a_directory_that_is_not_there_is_said_to_be_so(home, monkeypatch):
    def offline(name, *_):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    with pytest.raises(DataError, match="There is no file or directory 'data/mine' here"):
        load_training_data("data/mine")


@pytest.mark.parametrize(("quote", "lines"), [("", 1), ('"', 1), ('"', 3)])
def test_a_long_field_is_not_called_a_wrong_quote(tmp_path, quote, lines):
    text = "\n".join(["a" * (csv.field_size_limit() // lines + 1)] * lines)
    path = tmp_path / "x.csv"
    path.write_text(f"anchor,positive\n{quote}{text}{quote},b\nc,d\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.csv:2: .*a field has more than 131,072 characters.*JSON lines") as raised:
        load_training_data(path)
    assert "Write a quote" not in str(raised.value)
    data = load_training_data(path, on_bad_row="skip")
    assert [tuple(row.values()) for row in data] == [("c", "d")]
