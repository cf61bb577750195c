"""What is kept of an evaluation: on disk, compared, and shown."""

import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation.evaluate import evaluate
from lacos_st.evaluation.results import Evaluation, SetResult
from lacos_st.evaluation.tables import text


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_names_on_disk_hold_no_private_path(tmp_path, small):
    small.save(str(tmp_path / "secret" / "my-model"))
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    found = evaluate(
        tmp_path / "secret" / "my-model", data_dir=tmp_path / "data", output=tmp_path / "o", progress=False
    )
    assert found.sets[0].model == "my-model"
    assert not [p for p in (tmp_path / "o").rglob("*") if "secret" in str(p.relative_to(tmp_path))]
    for path in (tmp_path / "o").rglob("*.json"):
        assert "secret" not in path.read_text()


def test_a_damaged_detail_is_an_error_with_its_name(tmp_path):
    result = SetResult("m", "r", "local-x", "en", "test", ("en",), 1.0, 1.0, "d", np.ones(3), np.arange(3.0))
    result.save(tmp_path / "details")
    (path,) = tmp_path.rglob("*.safetensors")
    assert np.array_equal(SetResult.load(path).gold, result.gold)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LacosError, match="is damaged"):
        Evaluation.load(tmp_path)
    with pytest.raises(LacosError, match="holds no evaluation"):
        Evaluation.load(tmp_path / "details")


def test_others_may_read_what_is_written(tmp_path, small):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    (tmp_path / "plain").touch()
    evaluate(small, data_dir=tmp_path / "data", output=tmp_path / "o", progress=False)
    modes = {path.stat().st_mode for path in (tmp_path / "o").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_what_mteb_reports_on_its_validation_split_is_no_set_to_choose_by(tmp_path):
    for task in ("KLUE-STS", "STSBenchmark"):
        result = SetResult("m", "r", task, "default", "validation", ("ko",), 1.0, 1.0, "d", np.ones(3), np.arange(3.0))
        result.save(tmp_path / "details")
    assert [result.task for result in Evaluation.load(tmp_path).sets] == ["KLUE-STS"]
    assert [result.task for result in Evaluation.load(tmp_path, "dev").sets] == ["STSBenchmark"]


def test_two_models_are_compared_on_the_same_pairs(tmp_path, small):
    write_set(tmp_path, "mine.en.test.jsonl", 120)
    other = SentenceTransformer(modules=[*small])
    found = evaluate({"before": small, "after": other}, data_dir=tmp_path, progress=False)
    assert len(found.models) == 2
    before, after = found.models
    same = found.compare(before, after)
    assert same["local-mine/en"].delta == 0
    assert same["local-mine/en"].p == 1.0
    assert set(same) == {"local-mine/en", "mean: BLOOM languages", "mean: all sets"}
    with pytest.raises(LacosError, match="was not evaluated"):
        found.compare(before, "nobody")


def test_a_model_that_gives_every_pair_the_same_similarity_is_told_so(tmp_path, small):
    write_set(tmp_path, "mine.en.test.jsonl")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
        small[0].auto_model.ln_f.bias.fill_(1.0)
    found = evaluate(small, data_dir=tmp_path, output=tmp_path / "out", progress=False)
    assert math.isnan(found.sets[0].score)
    assert "every pair got the same similarity" in text(found)
