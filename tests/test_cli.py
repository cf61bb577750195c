import json
import re

import numpy as np
import pytest
from tiny import CORPUS

from lacos_st.cli import main
from lacos_st.cli.commands import COMMANDS
from lacos_st.cli.parser import build_parser
from lacos_st.model.model import LacosSentenceTransformer


@pytest.fixture(scope="module")
def saved(tiny_bloom, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model"
    LacosSentenceTransformer(tiny_bloom).add_lora(rank=2).save_pretrained(str(path))
    return path


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(CORPUS) + "\n", encoding="utf-8")
    return path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_can_be_said_can_be_done():
    assert (
        next(action for action in build_parser()._actions if action.dest == "command").choices.keys() == COMMANDS.keys()
    )


def test_train_from_flags_and_recipe(capsys, tiny_bloom, tmp_path):
    data = tmp_path / "pairs.csv"
    data.write_text("anchor,positive\n" + "".join(f"a man {i},man {i}\n" for i in range(40)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {tiny_bloom}\ntrain_data: [{data}]\nlora_rank: 8\nmax_steps: 2\nbatch_size: 8\n")
    output = tmp_path / "out"
    code, out, _ = run(
        capsys, "train", "--config", recipe, "--lora-rank", 4, "--output", output, "--no-mask-duplicates"
    )
    assert code == 0
    assert f'Use it: lacos_st.LacosSentenceTransformer("{output}"), or' in out
    assert "held-out loss" in out.splitlines()[0]  # said while it trains
    record = json.loads((output / "training.json").read_text())["recipe"]
    assert (record["lora_rank"], record["mask_duplicates"], record["max_steps"]) == (4, False, 2)
    code, _, err = run(capsys, "train", "--config", recipe, "--output", output)
    assert code == 2
    assert "--overwrite" in err


def test_encode_equals_the_library(capsys, saved, texts, tmp_path):
    code, out, _ = run(capsys, "encode", saved, texts, "--output", tmp_path / "x.npy", "--normalize")
    assert code == 0
    expected = LacosSentenceTransformer(saved).encode(list(CORPUS), normalize_embeddings=True)
    actual = np.load(tmp_path / "x.npy")
    assert actual.shape == expected.shape
    assert (actual * expected).sum(1).min() > 0.9999
    assert "x.npy" in out


def test_similarity(capsys, saved):
    code, out, _ = run(capsys, "similarity", saved, CORPUS[0], CORPUS[1])
    assert code == 0
    rows = [[float(x) for x in re.findall(r"-?\d\.\d{3}", line)[:2]] for line in out.splitlines()]
    assert rows[0][0] == rows[1][1] == 1.0
    assert rows[0][1] == rows[1][0]


def test_memory_needs_no_download(capsys):
    code, out, _ = run(capsys, "memory", "bigscience/bloom-7b1", "--device", "cpu", "--rank", 8)
    assert code == 0
    assert 7 < float(re.search(r"weights +([0-9.]+) GB", out)[1]) < 8
    assert run(capsys, "memory", "./nowhere")[0] == 2


def test_merge_and_info(capsys, saved, tmp_path):
    code, out, _ = run(capsys, "info", saved)
    assert code == 0
    assert "default (rank 2, dense+dense_4h_to_h+dense_h_to_4h+query_key_value)" in out
    assert run(capsys, "merge", saved, tmp_path / "merged")[0] == 0
    assert re.search(r"adapters +none", run(capsys, "info", tmp_path / "merged")[1])
    code, _, err = run(capsys, "merge", saved, tmp_path / "merged")
    assert code == 2
    assert "not empty" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "./nowhere"], "There is no directory './nowhere'"),
        (["train", "--lora-rank", "zero"], "lora_rank='zero' must be a whole number"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train", "--train-data", "missing.csv"], "missing.csv"),
        (["train", "--train-data", "texts.txt@1e12"], "The weight 1e+12 is above 1000"),
        (["train", "--train-data", "missing.csv", "--report-to", "nosuch"], "report_to=['nosuch']"),
        (["train", "--seed", "99999999999"], "seed=99999999999 must be at most"),
        (["train", "--epochs", "inf"], "epochs='inf' must be a finite number"),
        (["train", "--output", "texts.txt", "--overwrite"], "'texts.txt' is a file"),
        (["encode", "MODEL", "missing.txt", "--output", "x.npy"], "missing.txt"),
        (["encode", "MODEL", "TEXTS", "--output", "x.pkl"], "x.pkl"),
        (["similarity", "MODEL", "one"], "at least two"),
        (["evaluate", "MODEL", "--tasks", "NoSuchTask"], "NoSuchTask"),
        (["report", "nowhere"], "nowhere"),
        (["check-overlap", "missing.csv"], "missing.csv"),
        (["init", "--model", "gpt"], "gpt"),
        (["memory", "bloom-mini", "--length", "9" * 40], "at least 1 and below 2 billion"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, saved, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [{"MODEL": str(saved), "TEXTS": str(texts)}.get(argument, argument) for argument in arguments]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert err.startswith(f"lacos-st {arguments[0]}: error: ")


def test_an_argument_that_is_no_text_is_a_mistake(capsys):
    code, _, err = run(capsys, "similarity", "lacos-bloom", b"caf\xe9".decode(errors="surrogateescape"), "b")
    assert code == 2
    assert "'caf\\udce9' is not UTF-8" in err


def test_an_option_of_several_values_needs_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--train-data", "--output", "x"])
    assert "--train-data: expected at least one argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train", "encode", "evaluate", "report", "merge", "info", "init", "similarity", "demo"]
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "default" in capsys.readouterr().out or command in ("merge", "info", "similarity")
