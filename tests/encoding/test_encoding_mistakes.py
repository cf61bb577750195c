"""`encode_file`: a user's mistakes, full disks and several writers are errors that say what to do."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kill_encode import digest
from sentence_transformers import SentenceTransformer
from static import QUIET, WORDS, static_model

import lacos_st.encoding.store
from lacos_st.data.readers import DataError
from lacos_st.encoding.encode import encode_file
from lacos_st.errors import LacosError
from lacos_st.files import atomic, locked


def leftovers(output: Path) -> list[str]:
    """What is beside an output and belongs to it."""
    return sorted(path.name for path in output.parent.iterdir() if output.name in path.name and path != output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"chunk_size": -1}, "chunk_size=-1 must be at least 1"),
        ({"truncate_dim": 0}, "truncate_dim=0 must be at least 1"),
        ({"precision": "float64"}, "precision='float64' is not one of float32, float16"),
        ({"output": "x.bin"}, "x.bin' must end in .npy or .parquet"),
        ({"id_column": "id"}, "An .npy file holds no ids: write .parquet, or leave id_column='id' away"),
        ({"prompt_name": "nope"}, "The model has no prompt 'nope'"),
        ({"column": "nope"}, "texts.txt: there is no column 'nope'; it has 'text'"),
        ({"input": "missing.txt"}, "missing.txt cannot be read: No such file"),
    ],
)
def test_wrong_arguments(model, lines, tmp_path, options, message):
    options = {"input": lines, "output": "x.npy", **QUIET, **options}
    options["output"] = tmp_path / options["output"]
    with pytest.raises(LacosError, match=message):
        encode_file(model, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "x.txt is empty"),
        ("x.txt", b"a\nb\ncaf\xe9\n", "x.txt:3: not valid UTF-8: 0xE9 is byte 4"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "x.jsonl:2: has no column 'text' .it has 'txt'."),
        ("x.jsonl", b'{"text": "a"}\n{"text": 5}\n', "x.jsonl:2: column 'text' is 5, a int and not a text"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\\udc00"}\n', "x.jsonl:2: column 'text' contains half a surrogate"),
        ("x.jsonl", b'{"id": 1, "text": "a"}\n{"id": null, "text": "b"}\n', "x.jsonl:2: the id in column 'id' is miss"),
        ("x.csv", b"a,b\n1,2\n", "x.csv: cannot tell which column holds the texts; it has 'a', 'b'. Name it with col"),
        ("x.csv", b"text,b\n1,2\n1\n", "x.csv:3: 1 fields where the header has 2"),
    ],
)
def test_bad_rows_are_found_before_anything_is_encoded(model, tmp_path, monkeypatch, name, content, message):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *_, **__: pytest.fail("encoded before checking"))
    with pytest.raises(DataError, match=message):
        encode_file(model, tmp_path / name, tmp_path / "x.parquet", **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nan_is_an_error(lines, tmp_path):
    broken = static_model()
    broken[0].embedding.weight.data[WORDS.index("ζήτα") + 1] = float("nan")
    with pytest.raises(LacosError, match=r"NaN or infinity for row 6 \(from 0\) of .*texts.txt: 'ζήτα beta beta'"):
        encode_file(broken, lines, tmp_path / "x.npy", **QUIET)


def test_one_process_per_output(model, lines, tmp_path):
    code = (
        "import sys\nfrom lacos_st.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.npy")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LacosError, match=rf"Another process \(process {holder.pid}\) is writing .*x\.npy"):
            encode_file(model, lines, tmp_path / "x.npy", **QUIET)
        encode_file(model, lines, tmp_path / "y.npy", **QUIET)
        holder.kill()
    assert (tmp_path / "x.npy.lock").exists()  # what a killed process leaves holds nobody up
    encode_file(model, lines, tmp_path / "x.npy", **QUIET)
    assert leftovers(tmp_path / "x.npy") == []


def test_too_little_space_is_said_before_the_work(model, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("alpha\n" * 20_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(lacos_st.encoding.store.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(LacosError, match=r"x\.npy needs 3 MB, but 1 MB are free"):
        encode_file(model, tmp_path / "in.txt", tmp_path / "x.npy", show_progress=False)


def test_a_disk_that_fills_up(model, tmp_path):
    (tmp_path / "in.txt").write_text("alpha beta\n" * 2000)
    output = tmp_path / "x.npy"
    encode_file(model, tmp_path / "in.txt", tmp_path / "whole.npy", show_progress=False, chunk_size=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses to write beyond this
    try:
        with pytest.raises(LacosError, match=r"x\.npy cannot be written: File too large\. What was encoded is kept"):
            encode_file(model, tmp_path / "in.txt", output, show_progress=False, chunk_size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not output.exists()
    result = encode_file(model, tmp_path / "in.txt", output, show_progress=False, chunk_size=100)
    assert result.resumed_at == 700
    assert digest(output) == digest(tmp_path / "whole.npy")


def test_a_disk_that_fills_up_at_the_end(model, lines, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    output = tmp_path / "x.parquet"
    with pytest.raises(LacosError, match=r"cannot be written: No space left on device\. What was encoded is kept"):
        encode_file(model, lines, output, **QUIET)
    monkeypatch.undo()
    assert leftovers(output) == ["x.parquet.partial", "x.parquet.progress.json"]
    assert encode_file(model, lines, output, **QUIET).resumed_at == 10


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a directory where even root may not write")
def test_a_read_only_directory(model, lines):
    with pytest.raises(LacosError, match=r"/sys/kernel cannot be written: .*\. Choose an output elsewhere"):
        encode_file(model, lines, "/sys/kernel/x.npy", **QUIET)


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_locks_of_one_process_exclude_each_other(tmp_path):
    with locked(tmp_path / "x"), pytest.raises(LacosError, match="Another process"), locked(tmp_path / "x"):
        pass
