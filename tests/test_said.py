"""What commands say: which option was meant, what is missing before work begins, what is replaced, why a run stops."""

import logging
import re
import warnings

import numpy as np
import pytest
from sts_sets import write_set
from tiny import CORPUS

from lacos_st.cli import main
from lacos_st.cli.commands import COMMANDS
from lacos_st.config import LacosConfig
from lacos_st.data.load import DataError, load_training_data
from lacos_st.decoder.memory import predict
from lacos_st.encoding.encode import encode_file
from lacos_st.errors import LacosError
from lacos_st.evaluation.local_sets import read_pairs
from lacos_st.evaluation.results import Evaluation, SetResult
from lacos_st.evaluation.tables import text
from lacos_st.evaluation.tasks import plan
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.names import base_config
from lacos_st.training.assembly import memory_options
from lacos_st.training.train import train


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train --lr 1e-4", "no option --lr. Did you mean --lora-rank or --learning-rate or --lr-scheduler?"),
        ("train --learning_rate=1e-4", "no option --learning_rate. Did you mean --learning-rate?"),
        ("train --bach-size 8", "no option --bach-size. Did you mean --batch-size?"),
        ("train --eval x", "no option --eval. Did you mean --eval-data or --eval-steps?"),
        ("train --zzzzz", "no option --zzzzz. All options: lacos-st train --help"),
        ("encode m t.txt --outpt x.npy", "no option --outpt. Did you mean --output?"),
        ("encode m t.txt --out x.npy", "no option --out. Did you mean --output?"),
        ("memory m --batch_size 3", "no option --batch_size. Did you mean --batch-size?"),
        ("report r --Title x", "no option --Title. Did you mean --title?"),
        ("info m n", "unrecognized arguments: n"),
        ("merge m o -x", "unrecognized arguments: -x"),
    ],
)
def test_an_unknown_option_is_told_its_nearest(line, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lacos-st {line.split()[0]}: error: ")
    assert hint in said
    assert said.count("\n") == 1


def test_texts_may_look_like_options(monkeypatch):
    seen = []
    monkeypatch.setitem(COMMANDS, "similarity", lambda arguments: seen.append(arguments.texts))
    assert main(["similarity", "m", "--odd text", "b"]) == main(["similarity", "m", "--", "--odd", "b"]) == 0
    assert seen == [["--odd text", "b"], ["--odd", "b"]]


def test_memory_of_a_recipe(tmp_path, capsys):
    recipe = LacosConfig(
        base="bigscience/bloom-1b1", batch_size=16, max_seq_length=64, lora_rank=8, lora_dropout=0,
        lora_targets=["query_key_value", "dense"], gradient_checkpointing=True, compute_form="w8a16",
    )  # fmt: skip
    recipe.to_yaml(tmp_path / "r.yaml")
    assert main(["memory", "--config", str(tmp_path / "r.yaml")]) == 0
    base = base_config("bigscience/bloom-1b1")
    expected = predict(
        base, batch_size=16, length=64, rank=8, targets=("query_key_value", "dense"), dropout=0,
        gradient_checkpointing=True,
    )  # fmt: skip
    assert capsys.readouterr().out == expected.table() + "\n"
    flags = ["--batch-size", "4", "--length", "8", "--no-gradient-checkpointing"]
    assert main(["memory", "bigscience/bloom-560m", "--config", str(tmp_path / "r.yaml"), *flags]) == 0
    options = {**memory_options(recipe), "length": 8, "gradient_checkpointing": False, "batch_size": 4}
    assert capsys.readouterr().out == predict(base_config("bigscience/bloom-560m"), **options).table() + "\n"
    assert main(["memory", "--encode", "--config", str(tmp_path / "r.yaml")]) == 0
    options = {**memory_options(recipe), "batch_size": 16, "training": False, "compute_form": "w8a16"}
    assert capsys.readouterr().out == predict(base, **options).table() + "\n"
    LacosConfig(base=recipe.base, batch_size=64, mini_batch_size=4).to_yaml(tmp_path / "r.yaml")
    assert main(["memory", "--config", str(tmp_path / "r.yaml")]) == 0
    assert capsys.readouterr().out == predict(base, batch_size=4, length=128).table() + "\n"
    assert main(["memory"]) == 2
    assert "--config RECIPE.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["bloom-mimi", "bigscience/bloom-56m", "./nowhere"])
def test_a_misspelt_base_is_found_before_data_are_read(base, tmp_path):
    with pytest.raises(LacosError, match=re.escape(repr(base))):
        train(LacosConfig(base=base, train_data=["missing.csv"], output=str(tmp_path / "o")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"train_data": ["missing.csv"]},
        {"lora_targets": ["q_proj"]},
        {"template": "{text} a a a a", "max_seq_length": 2},
    ],
)
def test_a_mistake_before_the_first_step_leaves_no_run(change, tiny_bloom, tmp_path):
    data = tmp_path / "pairs.csv"
    data.write_text("anchor,positive\n" + "".join(f"a man {i},man {i}\n" for i in range(40)))
    options = {"base": str(tiny_bloom), "train_data": [str(data)], "output": str(tmp_path / "o")}
    with pytest.raises(LacosError):
        train(LacosConfig(**{**options, **change}))
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", "--config", ""], "The recipe '' cannot be read"),
        (["train", "--batch-size", "1" + "0" * 20], "batch_size=100000000000000000000 must be at most 2147483647."),
        (["train", "--max-steps", "1e23"], "must be at most 2147483647."),
        (["train", "--learning-rate", "1e300"], "learning_rate=1e+300 must be at most 2147483647."),
        (["train", "--lora-rank", "10000000"], "lora_rank=10000000 must be at most 16384."),
        (["train", "--min-score=-1e300"], "min_score=-1e+300 must be at least"),
        (
            ["evaluate", "MODEL", "--data-dir", "sts", "--batch-size", "9" * 30],
            "must be at least 1 and below 2 billion.",
        ),
        (["evaluate", "", "--data-dir", "sts"], "The name of a model is empty"),
        (
            [
                "encode",
                "MODEL",
                "sts/x.en.test.jsonl",
                "--column",
                "sentence1",
                "--output",
                "x.npy",
                "--devices",
                "meta",
            ],
            "The device 'meta'",
        ),
        (["report", "o", "--output", "file/r.html"], "The report cannot be written to 'file/r.html': File exists."),
    ],
)
def test_an_odd_value_is_one_line_and_exit_code_2(line, message, tiny_bloom, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "sts", "x.en.test.jsonl", 3)
    (tmp_path / "file").touch()
    result = SetResult("m", "r", "local-x", "en", "test", ("en",), 1.0, 1.0, "d", np.ones(3), np.arange(3.0))
    result.save(tmp_path / "o" / "details")
    assert main([str(tiny_bloom) if part == "MODEL" else part for part in line]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lacos-st {line[0]}: error: ")
    assert message in said


def test_a_folder_that_was_there_stays(tiny_bloom, tmp_path):
    (tmp_path / "o.run").mkdir()
    (tmp_path / "o.run" / "mine.txt").touch()
    with pytest.raises(LacosError):
        train(LacosConfig(base=str(tiny_bloom), train_data=["missing.csv"], output=str(tmp_path / "o")))
    assert (tmp_path / "o.run" / "mine.txt").exists()


def test_early_stopping_says_that_it_stopped(tiny_bloom, tmp_path, capsys):
    data = tmp_path / "pairs.csv"
    data.write_text("anchor,positive\n" + "".join(f"a man {i},man {i}\n" for i in range(40)))
    options = {"base": str(tiny_bloom), "train_data": [str(data)], "batch_size": 8, "eval_steps": 1, "max_steps": 9}
    still = {"learning_rate": 1e-30, "early_stopping_patience": 2}  # nothing can become better
    model = train(LacosConfig(**options, **still, output=str(tmp_path / "a")))
    assert model.training_record["steps"] == 3
    said = "step 3 of 9: stopped early, as 2 evaluation(s) were no better than step 1"
    assert said in capsys.readouterr().out
    train(LacosConfig(**{**options, "max_steps": 2}, early_stopping_patience=9, output=str(tmp_path / "b")))
    assert "stopped early" not in capsys.readouterr().out


def test_dimensions_that_are_not_there_and_an_output_that_is(tiny_model, tmp_path, caplog):
    (tmp_path / "t.txt").write_text("\n".join(CORPUS))
    files = tmp_path / "t.txt", tmp_path / "x.npy"
    with pytest.raises(LacosError, match="truncate_dim=5000 is more than the 64 dimensions"):
        encode_file(tiny_model, *files, truncate_dim=5000, show_progress=False)
    encode_file(tiny_model, *files, truncate_dim=64, show_progress=False)
    assert not caplog.records
    encode_file(tiny_model, *files, truncate_dim=32, show_progress=False)
    assert f"{files[1]} exists already and is replaced" in caplog.text
    assert np.load(files[1]).shape == (len(CORPUS), 32)


def test_a_decimal_comma_is_told_so(tmp_path):
    (tmp_path / "s.csv").write_text('sentence1,sentence2,score\na,b,"4,5"\n')
    with pytest.raises(DataError, match=r"'4,5' in column 'score' is no number \(write 4\.5 with a point\)"):
        load_training_data(tmp_path / "s.csv", min_score=3)
    path = write_set(tmp_path, "s.en.test.jsonl", 3, score="4,5")
    with pytest.raises(DataError, match=r"not '4,5' \(write 4\.5 without quotes and with a point\)"):
        list(read_pairs(path))
    write_set(tmp_path, "s.en.test.jsonl", 3, score="high")
    with pytest.raises(DataError, match=r"not 'high'\.$"):
        list(read_pairs(path))


@pytest.mark.parametrize("name", ["STSB", "stsb", "sick"])
def test_a_name_of_several_sets_asks_which(name):
    with pytest.raises(LacosError, match=rf"'{name}' could be .*STSBenchmark \(en\)|'sick' could be SICK-R \(en\)"):
        plan([name])
    with pytest.raises(LacosError, match="Which"):
        plan([name], ["en"])


def test_a_language_or_a_file_says_which(tmp_path):
    assert [task.name for task in plan(["STSB"], ["zh"])] == ["STSB"]
    assert [task.name for task in plan(["STSBenchmark"])] == ["STSBenchmark"]
    assert "STSB" in {task.name for task in plan(["sts-multilingual"])}
    write_set(tmp_path, "stsb.en.test.jsonl")
    assert [task.name for task in plan(["stsb"], data_dir=tmp_path)] == ["local-stsb"]


def test_an_interval_has_as_many_digits_as_its_score():
    gold = np.arange(40.0)
    sets = []
    for model, noise in (("a", 9), ("b", 30)):
        similarity = gold + noise * np.random.default_rng(0).normal(size=40)
        sets.append(SetResult(model, "r" * 8, "local-x", "en", "test", ("en",), 50.0, 1.0, "d", similarity, gold))
    shown = text(Evaluation.of_sets(sets))
    intervals = re.findall(r"\[[^\]]*\]", shown)
    assert len(intervals) == 9
    assert all(re.fullmatch(r"\[[+-]?\d+\.\d\d, [+-]?\d+\.\d\d\]", found) for found in intervals)


def test_host_libraries_are_silent(tiny_bloom, tmp_path, caplog):
    options = {"compute_form": "bnb", "training_form": "bnb"}
    logging.getLogger("bitsandbytes").setLevel(logging.DEBUG)
    model = LacosSentenceTransformer(tiny_bloom, transformer_options=options).add_lora(rank=2)
    model.half().encode("a") if model.device.type == "cuda" else model.bfloat16().encode("a")
    model[0].base["name"] = "someone/nothing"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(str(tmp_path / "m"))
    assert not [w for w in caught if "vocabulary" in str(w.message)]
    assert "cast" not in caplog.text
