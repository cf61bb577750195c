"""What Ray's processes do, in this process: check a file, cut it into parts, encode one."""

import json
import os
import time
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import quantize_embeddings
from static import TEXTS, WORDS, static_model

from lacos_st.data.readers import DataError
from lacos_st.encoding.encode import encode_file
from lacos_st.encoding.work import Actor, File, Job, read, scanned
from lacos_st.errors import LacosError

OPTIONS = {"batch_size": 2, "normalize": False, "prompt_name": None, "truncate_dim": None, "devices": None}


@pytest.fixture
def job(tmp_path) -> Job:
    (tmp_path / "out" / "_staged" / "run").mkdir(parents=True)
    return Job(static_model, OPTIONS, {"embedding": "float32"}, 4, tmp_path / "out", tmp_path / "out/_staged/run")


def parts(file: File, size: int = 4, there: tuple[str, ...] = (), integer_ids: bool = True) -> list[pa.Table]:
    return list(read(pa.table({"file": [json.dumps([asdict(file), list(there)])]}), size, integer_ids))


def written(job: Job, answer: pa.Table) -> pa.Table:
    return pq.read_table(pa.BufferReader((job.staged / answer["staged"][0].as_py()).read_bytes()))


def test_parts_are_the_rows_in_order_with_ids_of_content_and_row(lines):
    file, sample = scanned(str(lines), None, None, 0)
    assert (file.rows, file.empty, file.column, file.id_column, sample) == (10, 2, "text", None, [])
    tables = parts(file)
    assert [table["texts"][0].as_py() for table in tables] == [TEXTS[:4], TEXTS[4:8], TEXTS[8:]]
    assert [i for table in tables for i in table["ids"][0].as_py()] == [f"{file.digest}-{row}" for row in range(10)]
    assert [table["part"][0].as_py() for table in tables] == [f"{file.digest}-{n:06d}.parquet" for n in range(3)]
    there = tables[1]["part"][0].as_py()
    assert [table["start"][0].as_py() for table in parts(file, there=(there,))] == [0, 8]


@pytest.mark.parametrize(("integers", "ids"), [(True, [7, 8]), (False, ["7", "8"])])
def test_ids_are_integers_if_those_of_all_files_are(tmp_path, integers, ids):
    (tmp_path / "x.jsonl").write_text('{"id": 7, "text": "a"}\n{"id": 8, "text": null}\n')
    file, _ = scanned(str(tmp_path / "x.jsonl"), None, None, 0)
    assert file.integer_ids
    assert parts(file, integer_ids=integers)[0]["ids"][0].as_py() == ids


def test_an_actor_writes_what_the_local_engine_writes(job, lines, tmp_path):
    job.columns = {"a": "float32", "b": "int8", "c": "ubinary", "d": "float16"}
    whole = tmp_path / "whole.npy"
    encode_file(static_model(), lines, whole, chunk_size=4, batch_size=2, show_progress=False)
    expected = np.load(whole)
    file, sample = scanned(str(lines), None, None, 100)
    assert sorted(text for _, text in sample) == sorted(TEXTS)  # a sample of few rows is all of them
    job.ranges = Actor(job).get("ranges_of", [text for _, text in sample])
    np.testing.assert_allclose(job.ranges, [expected.min(0), expected.max(0)], atol=1e-6)
    actor = Actor(job)
    tables = [written(job, actor(part)) for part in parts(file)]
    rows = {name: np.concatenate([np.array(table[name].to_pylist()) for table in tables]) for name in job.columns}
    np.testing.assert_allclose(rows["a"], expected, atol=1e-6)
    assert np.abs(rows["b"] - quantize_embeddings(expected, "int8", ranges=job.ranges).astype(int)).max() <= 1
    np.testing.assert_array_equal(rows["c"], quantize_embeddings(expected, "ubinary"))
    np.testing.assert_allclose(rows["d"], expected, atol=1e-3)
    types = {str(tables[0].schema.field(name).type.value_type) for name in "abcd"}
    assert types == {"float", "int8", "uint8", "halffloat"}


def test_a_sample_is_uniform_and_the_same_each_time(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{row}\n" for row in range(2000)))
    first, again = (scanned(str(path), None, None, 500)[1] for _ in range(2))
    assert first == again
    rows = np.array([int(text) for _, text in first])
    assert len(set(rows)) == 500
    assert 850 < rows.mean() < 1150  # 999.5 and five standard errors


def test_nan_is_named_with_its_row(job, lines):
    def broken():
        model = static_model()
        model[0].embedding.weight.data[WORDS.index("ζήτα") + 1] = float("nan")
        return model

    file, _ = scanned(str(lines), None, None, 0)
    actor = Actor(replace(job, model=broken))
    actor(parts(file)[0])
    with pytest.raises(LacosError, match=r"NaN or infinity for row 6 \(from 0\) of .*texts.txt: 'ζήτα beta beta'"):
        actor(parts(file)[1])


def test_numbers_too_large_for_float16_are_refused(job, lines):
    def large():
        model = static_model()
        model[0].embedding.weight.data *= 1e6
        return model

    file, _ = scanned(str(lines), None, None, 0)
    actor = Actor(replace(job, model=large, columns={"embedding": "float16"}))
    with pytest.raises(LacosError, match=r"float16' ends at 65,504, and the embeddings reach"):
        actor(parts(file)[0])


def test_a_file_that_changes_after_its_check_is_not_read_on(lines):
    file, _ = scanned(str(lines), None, None, 0)
    reader = read(pa.table({"file": [json.dumps([asdict(file), []])]}), 4, True)
    next(reader)
    os.utime(lines, ns=(0, time.time_ns()))
    with pytest.raises(DataError, match=r"texts\.txt changed while it was encoded"):
        next(reader)
    lines.unlink()
    with pytest.raises(DataError, match=r"texts\.txt"):
        parts(file)


def test_another_model_than_planned_is_refused(job):
    plan = Actor(job).get("model_plan")
    assert Actor(replace(job, model_plan=plan)).get("model_plan") == plan
    with pytest.raises(LacosError, match=r"the model is not what it is elsewhere \(model: '\w+' instead of 'x'\)"):
        Actor(replace(job, model_plan={**plan, "model": "x"})).get("model_plan")


def test_a_part_that_kills_its_actors_is_given_up(job, lines):
    file, _ = scanned(str(lines), None, None, 0)
    part = parts(file)[1]
    for _ in range(5):
        Actor(job)._begin(part["part"][0].as_py(), file.path, 4, 4)  # and dies
    with pytest.raises(LacosError, match=r"5 processes died over rows 4 to 8 \(from 0\) of .*texts\.txt"):
        Actor(job)(part)
    Actor(job)(parts(file)[0])


@pytest.mark.parametrize("gone", ["out", "out/_staged/run"])
def test_an_output_that_vanishes_is_told_so(job, lines, gone):
    file, _ = scanned(str(lines), None, None, 0)
    actor = Actor(job)
    actor(parts(file)[0])
    (job.output.parent / gone).rename(job.output.parent / "elsewhere")
    with pytest.raises(LacosError, match=r"is not there on .*: it was deleted while `encode` ran, or this machine"):
        actor(parts(file)[1])


def test_a_full_disk_keeps_what_is_there(job, lines, monkeypatch):
    file, _ = scanned(str(lines), None, None, 0)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(LacosError, match=r"out cannot be written: No space left on device\. What was encoded is kept"):
        Actor(job)(parts(file)[0])


def test_options_reach_the_model(job, lines):
    file, _ = scanned(str(lines), None, None, 0)
    actor = Actor(replace(job, options={**OPTIONS, "normalize": True, "truncate_dim": 8}))
    rows = np.array(written(job, actor(parts(file)[0]))["embedding"].to_pylist())
    assert rows.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1, 0], atol=1e-6)
    with pytest.raises(LacosError, match="The model has no prompt 'nope'"):
        Actor(replace(job, options={**OPTIONS, "prompt_name": "nope"})).get("model_plan")
    with pytest.raises(LacosError, match="truncate_dim=99 is more than the 32 dimensions"):
        Actor(replace(job, options={**OPTIONS, "truncate_dim": 99})).get("model_plan")
