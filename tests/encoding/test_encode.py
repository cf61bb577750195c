"""`encode_file`: the same rows as `encode`, whatever the format; the same bytes, however often it is interrupted."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kill_encode import digest
from sentence_transformers import SentenceTransformer, quantize_embeddings
from static import QUIET, TEXTS, WORDS, static_model

from lacos_st.data.readers import DataError
from lacos_st.encoding.encode import encode_file
from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer


def expected(model, texts=TEXTS, **options) -> np.ndarray:
    rows = model.encode([text or "x" for text in texts], **options)
    rows[[not text.strip() for text in texts]] = 0
    return rows


def leftovers(output: Path) -> list[str]:
    """What is beside an output and belongs to it."""
    return sorted(path.name for path in output.parent.iterdir() if output.name in path.name and path != output)


# -- what is written


def test_rows_are_lines(model, lines, tmp_path):
    result = encode_file(model, lines, tmp_path / "x.npy", **QUIET)
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(rows, np.memmap)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(model), atol=1e-6)
    assert (result.rows, result.dimension, result.empty, result.resumed_at) == (10, 32, 2, 0)
    assert leftovers(tmp_path / "x.npy") == []


def test_a_bloom_model(tiny_bloom, lines, tmp_path):
    bloom = SentenceTransformer(str(tiny_bloom), device="cpu")
    encode_file(bloom, lines, tmp_path / "x.npy", **QUIET)
    full = [text for text in TEXTS if text.strip()]
    rows = np.load(tmp_path / "x.npy")[[bool(text.strip()) for text in TEXTS]]
    np.testing.assert_allclose(rows, bloom.encode(full), atol=1e-4)


def test_chunks_do_not_matter_to_the_values(model, lines, tmp_path):
    for size in (1, 4, 100):
        encode_file(model, lines, tmp_path / f"{size}.npy", show_progress=False, chunk_size=size)
        np.testing.assert_allclose(np.load(tmp_path / f"{size}.npy"), expected(model), atol=1e-6)


@pytest.mark.parametrize("ending", [".txt.gz", ".jsonl", ".jsonl.gz", ".csv", ".tsv.gz", ".parquet"])
def test_input_formats(model, tmp_path, ending):
    path = tmp_path / f"in{ending}"
    kind = ending.removesuffix(".gz")
    if kind == ".parquet":
        pq.write_table(pa.table({"id": range(10, 20), "text": TEXTS}), path)
    else:
        content = {
            ".txt": "\r\n".join(TEXTS),
            ".jsonl": "\n\n".join(json.dumps({"id": 10 + i, "text": text}) for i, text in enumerate(TEXTS)),
            ".csv": "id,text\n" + "".join(f'{10 + i},"{text}"\n' for i, text in enumerate(TEXTS)),
            ".tsv": "id\ttext\n" + "".join(f"{10 + i}\t{text}\n" for i, text in enumerate(TEXTS)),
        }[kind].encode()
        path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    encode_file(model, path, tmp_path / "x.parquet", **QUIET)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    ids = {".txt": list(range(10)), ".csv": [str(i) for i in range(10, 20)]}
    ids[".tsv"] = ids[".csv"]
    assert table["id"].to_pylist() == ids.get(kind, list(range(10, 20)))
    np.testing.assert_allclose(np.asarray(table["embedding"].to_pylist()), expected(model), atol=1e-6)


def test_columns_and_mixed_ids(model, tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"key": 1, "title": "x", "body": "alpha"}, {"key": "b", "title": "y", "body": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    encode_file(model, path, tmp_path / "x.parquet", column="body", id_column="key", **QUIET)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["id"].to_pylist() == ["1", "b"]
    np.testing.assert_allclose(table["embedding"].to_pylist(), expected(model, ["alpha", ""]), atol=1e-6)
    encode_file(model, path, tmp_path / "new" / "y.parquet", column="title", **QUIET)
    assert pq.read_table(tmp_path / "new" / "y.parquet")["id"].to_pylist() == [0, 1]


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_precisions_are_those_of_the_whole(model, lines, tmp_path, precision, ending):
    output = tmp_path / f"x{ending}"
    result = encode_file(model, lines, output, precision=precision, **QUIET)
    rows = np.load(output) if ending == ".npy" else np.asarray(pq.read_table(output)["embedding"].to_pylist())
    whole = quantize_embeddings(expected(model), precision=precision)
    assert rows.shape == whole.shape == (10, result.dimension)
    assert np.abs(rows.astype(int) - whole.astype(int)).max() <= (1 if "int8" in precision else 0)
    if "int8" in precision:
        ranges = np.load(tmp_path / "x.ranges.npy")
        np.testing.assert_allclose(ranges, [expected(model).min(0), expected(model).max(0)], atol=1e-6)
        np.testing.assert_array_equal(rows, quantize_embeddings(expected(model), precision, ranges=ranges))


def test_options_reach_the_model(model, lines, tmp_path):
    model.prompts = {"query": "theta theta "}
    encode_file(
        model, lines, tmp_path / "x.npy", normalize=True, prompt_name="query", truncate_dim=8, devices="cpu", **QUIET
    )
    same = expected(model, normalize_embeddings=True, prompt_name="query", truncate_dim=8)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), same, atol=1e-6)
    assert np.abs(same - expected(model, normalize_embeddings=True, truncate_dim=8)).max() > 0.01


def test_an_existing_output_is_replaced_at_the_end(model, lines, tmp_path):
    output = tmp_path / "x.npy"
    np.save(output, np.ones(3))
    encode_file(model, lines, output, **QUIET)
    assert np.load(output).shape == (10, 32)


# -- interruption


class Stop(Exception):
    pass


def interrupt(model, monkeypatch, after: int) -> None:
    """Make the model fail after so many chunks."""
    calls = []
    original = SentenceTransformer.encode

    def encode(self, texts, **options):
        calls.append(texts)
        if len(calls) > after + 1:  # the first call asks for the dimension
            raise Stop
        return original(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", encode)


def test_resuming_encodes_only_the_rest(model, lines, tmp_path, monkeypatch):
    output = tmp_path / "x.npy"
    encode_file(model, lines, tmp_path / "whole.npy", **QUIET)
    interrupt(model, monkeypatch, 2)
    with pytest.raises(Stop):
        encode_file(model, lines, output, **QUIET)
    monkeypatch.undo()
    assert leftovers(output) == ["x.npy.partial", "x.npy.progress.json"]
    assert not output.exists()
    with output.with_name("x.npy.partial").open("ab") as file:
        file.write(b"half a chunk that was never counted")
    os.utime(lines)  # a touch is no change
    result = encode_file(model, lines, output, **QUIET)
    assert result.resumed_at == 6
    assert digest(output) == digest(tmp_path / "whole.npy")
    assert leftovers(output) == []


def test_other_settings_do_not_resume(model, lines, tmp_path, monkeypatch):
    output = tmp_path / "x.npy"
    interrupt(model, monkeypatch, 2)
    with pytest.raises(Stop):
        encode_file(model, lines, output, **QUIET)
    monkeypatch.undo()
    with pytest.raises(LacosError, match=r"other settings \(batch_size: 2, now 4\).*start over with resume=False"):
        encode_file(model, lines, output, **{**QUIET, "batch_size": 4})
    other = static_model()
    other[0].embedding.weight.data[3, 3] += 1e-3
    with pytest.raises(LacosError, match=r"other settings \(model: '\w+', now '\w+'\)"):
        encode_file(other, lines, output, **QUIET)
    lines.write_text(lines.read_text().replace("beta", "zeta"))
    with pytest.raises(LacosError, match=r"other settings \(input: "):
        encode_file(model, lines, output, **QUIET)
    result = encode_file(model, lines, output, resume=False, **QUIET)
    assert (result.resumed_at, leftovers(output)) == (0, [])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.npy.partial", Path.unlink),
        ("x.npy.partial", lambda path: os.truncate(path, path.stat().st_size - 1)),
        ("x.npy.progress.json", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("x.npy.progress.json", lambda path: path.write_text("[]")),
    ],
    ids=["lost", "cut", "torn record", "no record"],
)
def test_what_is_lost_or_damaged_means_starting_over(model, lines, tmp_path, monkeypatch, name, damage):
    output = tmp_path / "x.npy"
    interrupt(model, monkeypatch, 2)
    with pytest.raises(Stop):
        encode_file(model, lines, output, **QUIET)
    monkeypatch.undo()
    damage(tmp_path / name)
    assert encode_file(model, lines, output, **QUIET).resumed_at == 0
    np.testing.assert_allclose(np.load(output), expected(model), atol=1e-6)


def test_an_input_that_changes_meanwhile(model, lines, tmp_path, monkeypatch):
    original = SentenceTransformer.encode

    def encode(self, texts, **options):
        os.utime(lines, ns=(0, 0))
        return original(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    with pytest.raises(DataError, match=r"texts\.txt changed while it was encoded"):
        encode_file(model, lines, tmp_path / "x.npy", **QUIET)
    assert not (tmp_path / "x.npy").exists()


def kill_script(tmp_path: Path, kills: int, seed: int, *model: str) -> dict:
    script = Path(__file__).with_name("kill_encode.py")
    command = [sys.executable, str(script), str(kills), str(seed), str(tmp_path), *model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["equal"] == [True] * 3
    assert report["kills"] > 0
    assert report["left"] == [
        *("disturbed-float32.npy", "disturbed-int8.parquet", "disturbed-int8.ranges.npy", "disturbed-ubinary.npy")
    ]
    return report


def test_killed_at_random_moments(tmp_path):
    kill_script(tmp_path, 4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("bloom", [False, True])
def test_killed_at_thirty_random_moments(tmp_path, tiny_bloom, bloom):
    report = kill_script(tmp_path, 30, 1, *([str(tiny_bloom)] if bloom else []))
    assert len({done for done in report["done"] if done}) >= 5  # at different stages


# -- size and many processes

MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from kill_encode import QUIET, TEXTS, static_model
from lacos_st.encoding.encode import encode_file
model = static_model(64)
encode_file(model, sys.argv[2], sys.argv[3] + '.warm.npy', show_progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = encode_file(model, sys.argv[4], sys.argv[3], show_progress=False, batch_size=256)
print(result.rows, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_million_lines_in_bounded_memory(tmp_path, ending):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    for path, count in ((small, 20_000), (large, 1_000_000)):
        with path.open("w") as file:
            file.writelines(f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {i}\n" for i in range(count))
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), small, tmp_path / f"x{ending}", large]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, before, after = map(int, done.stdout.splitlines()[-1].split())
    assert rows == 1_000_000
    assert (after - before) * 1024 < 64e6, f"{before} -> {after} kB"  # the output alone is 256 MB


@pytest.mark.slow
def test_two_processes_give_the_same_rows(tiny_bloom, lines, tmp_path):
    bloom = LacosSentenceTransformer(tiny_bloom, device="cpu")
    encode_file(bloom, lines, tmp_path / "one.npy", **QUIET)
    encode_file(bloom, lines, tmp_path / "two.npy", devices=["cpu", "cpu"], **QUIET)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-4)


def test_the_input_is_never_the_output(tiny_model, tmp_path):
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    with pytest.raises(LacosError, match="is the input itself"):
        encode_file(tiny_model, path, path, **QUIET)
    assert pq.read_table(path).column_names == ["text"]


def test_a_device_that_is_not_there_is_told_so(tiny_model, lines, tmp_path):
    with pytest.raises(LacosError, match="'nonsense' cannot be used"):
        encode_file(tiny_model, lines, tmp_path / "x.npy", devices="nonsense", **QUIET)
