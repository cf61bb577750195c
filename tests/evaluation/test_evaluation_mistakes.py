"""What a user of `evaluate` gets wrong, what cannot be reached, and a million pairs."""

import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation import evaluate as evaluation_module
from lacos_st.evaluation import tasks as tasks_module
from lacos_st.evaluation.evaluate import evaluate
from lacos_st.evaluation.results import LEXICAL
from lacos_st.evaluation.tables import text
from lacos_st.evaluation.tasks import SAMPLE, MissingDataError, plan


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_without_network_and_files_the_error_says_how_to_get_the_data(small, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        evaluate(small, tasks="STS16", progress=False)
    message = str(caught.value)
    assert "mteb/sts16-sts" in message
    assert "sts16.en.test.jsonl" in message
    assert "--data-dir" in message
    write_set(tmp_path, "mine.en.test.jsonl")
    with pytest.raises(MissingDataError):  # other files do not help
        evaluate(small, tasks="STS16", data_dir=tmp_path, progress=False)


def test_two_development_files_of_one_set_are_a_mistake(tmp_path):
    for split in ("dev", "validation"):
        write_set(tmp_path, f"mine.en.{split}.jsonl")
    with pytest.raises(LacosError, match=r"mine\.en\.dev\.jsonl and mine\.en\.validation\.jsonl are both dev sets"):
        plan(None, data_dir=tmp_path, split="dev")


def test_a_network_that_is_gone_is_asked_once(small, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []

    def fetch(self):
        seen.append((datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise MissingDataError(self.name) from ConnectionError("no route")

    monkeypatch.setattr(tasks_module.Task, "_fetch", fetch)
    with pytest.raises(LacosError, match="No data set could be had"):
        evaluate(small, tasks="sts-english", progress=False)
    assert seen == [(False, False)] + [(True, True)] * 7
    assert not datasets.config.HF_HUB_OFFLINE


def test_both_libraries_read_the_offline_switch_when_they_are_called(monkeypatch):
    """evaluation.py turns it on for the sets of a group after the first that could not be reached."""
    import datasets
    from huggingface_hub import constants

    with evaluation_module._hub_offline():
        assert datasets.config.HF_HUB_OFFLINE
        assert constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not constants.is_offline_mode()


def test_the_recipe_in_that_error_works(small, tmp_path):
    """A file named as the message says is found under the task's name (its rows are too few to be official)."""
    write_set(tmp_path, "sts16.en.test.jsonl")
    assert [task.name for task in plan("STS16", None, tmp_path)] == ["local-sts16"]


def test_a_group_runs_what_is_there_and_lists_what_is_not(small, tmp_path):
    path = SAMPLE / "sts17.en-en.test.jsonl.gz"
    shutil.copy(path, tmp_path)
    found = evaluate(small, tasks=["STS17", "sts-english"], data_dir=tmp_path, progress=False)
    assert [r.name for r in found.sets if r.model != LEXICAL] == ["STS17/en-en"]
    assert len(found.missing) == 8
    assert "Not run" in text(found)
    assert "mteb/sts16-sts" in text(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "STS18", "data_dir": SAMPLE}, "'STS18' is no group .*no MTEB task and no local data set"),
        ({"data_dir": SAMPLE / "nowhere"}, "is no directory"),
        ({"data_dir": SAMPLE.parent}, "Its folder 'sts' has such files"),
        ({"tasks": "sts-sample", "split": "train"}, "split='train' is unknown"),
    ],
)
def test_a_wrong_name_is_told_so(small, arguments, message):
    with pytest.raises(LacosError, match=message):
        evaluate(small, progress=False, **arguments)


@pytest.mark.parametrize("output", ["afile", "afile/below"])
def test_an_output_that_is_no_directory_is_told_so(tmp_path, small, monkeypatch, output):
    (tmp_path / "afile").touch()
    monkeypatch.setattr(small, "encode", lambda *a, **k: pytest.fail("it was encoded"))
    with pytest.raises(LacosError, match=f"output '.*{output}' cannot be made a directory: .*Choose another"):
        evaluate(small, tasks="sts-sample", output=tmp_path / output, progress=False)


def test_a_model_that_is_not_there_is_told_so():
    with pytest.raises(LacosError, match="'no/such-model' could not be loaded"):
        evaluate("no/such-model", tasks="sts-sample", progress=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_pairs_are_evaluated_in_bounded_memory(tmp_path):
    """Embeddings of 2 million sentences of 1,024 floats would be 8.2 GB; the process stays below 2.5 GB."""
    import subprocess
    import sys

    program = """
import json, random, resource, sys
from pathlib import Path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from lacos_st.evaluation.evaluate import evaluate

words = [f"w{i}" for i in range(2000)]
rng = random.Random(0)
with open(Path(sys.argv[1]) / "mine.en.test.jsonl", "w") as file:
    for _ in range(1_000_000):
        first = rng.choices(words, k=4)
        second = first[:2] + rng.choices(words, k=2)
        file.write(json.dumps({"sentence1": " ".join(first), "sentence2": " ".join(second),
                               "score": rng.randrange(6)}) + "\\n")
tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*words, "[UNK]"])}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=1024)])
found = evaluate(model, data_dir=sys.argv[1], output=Path(sys.argv[1]) / "out", progress=False, batch_size=1024)
print(len(found.sets[0].gold), found.sets[0].score, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=3500
    )
    pairs, score, peak = map(float, done.stdout.split())
    assert pairs == 1_000_000
    assert abs(score) < 1
    assert peak < 2.5e9, f"{peak / 1e9:.2f} GB"
