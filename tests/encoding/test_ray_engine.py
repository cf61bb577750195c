"""`encode_files` on a Ray of two actors: the local engine's vectors, each id once; what is refused, and when."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from sentence_transformers import quantize_embeddings
from static import TEXTS, WORDS, static_model

from lacos_st.cli import main
from lacos_st.data.readers import DataError
from lacos_st.encoding import cluster
from lacos_st.encoding.encode import encode_file
from lacos_st.encoding.ray_engine import encode_files
from lacos_st.errors import LacosError
from lacos_st.files import locked

QUIET = {"show_progress": False, "batch_size": 2}


@pytest.fixture(scope="module")
def two_processors() -> Iterator[None]:
    """A Ray that outlives the tests of this file; its processes find the modules of tests."""
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        "local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False,
        logging_level="CRITICAL",
    )  # fmt: skip
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if kept is None else os.environ.update(PYTHONPATH=kept)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three formats, ids 0 to 39, one of them a text; beside them what is no input."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    rows = [{"id": i, "text": TEXTS[i % 10] + f" {WORDS[i % 8]}" * (i % 10 not in (1, 3))} for i in range(40)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:13]))
    lines = "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows[13:20])
    (folder / "b.csv.gz").write_bytes(gzip.compress(f"id,text\n{lines}".encode()))
    pq.write_table(pa.Table.from_pylist(rows[20:]), folder / "below" / "c.parquet")
    (folder / "readme.md").write_text("no input")
    (folder / "_SUCCESS").write_text("")
    return folder


def local(folder: Path, directory: Path) -> dict[str, list[float]]:
    """What the local engine makes of the same files."""
    rows: dict[str, list[float]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".jsonl", ".gz", ".parquet")):
        encode_file(static_model(), path, directory / "x.parquet", show_progress=False)
        table = pq.read_table(directory / "x.parquet")
        rows |= dict(zip(map(str, table["id"].to_pylist()), table["embedding"].to_pylist(), strict=True))
    return rows


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    full = np.linalg.norm(other, axis=1) > 0
    assert np.array_equal(full, np.linalg.norm(one, axis=1) > 0)
    one, other = one[full], other[full]
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_two_actors_write_what_the_local_engine_writes(two_processors, folder, tmp_path, caplog):
    output, columns = tmp_path / "out", ["float32", "int8", "ubinary"]
    run = {"precision": columns, "part_size": 4, "actors": 2, **QUIET}
    result = encode_files(static_model, folder, output, **run)
    assert (result.rows, result.parts, result.dimension, result.empty, result.resumed_at) == (40, 11, 32, 8, 0)
    assert 1 <= result.actors <= 2
    assert "left out what is of another kind: 'readme.md'" in caplog.text
    table = pq.read_table(output, page_checksum_verification=True)
    assert table.column_names == ["id", "embedding_float32", "embedding_int8", "embedding_ubinary"]
    assert sorted(table["id"].to_pylist(), key=int) == [str(i) for i in range(40)]
    expected = local(folder, tmp_path)
    wanted = np.array([expected[i] for i in table["id"].to_pylist()])
    rows = np.array(table["embedding_float32"].to_pylist())
    assert cosine(rows, wanted).min() > 0.9999
    ranges = np.load(output / "_ranges.npy")
    np.testing.assert_allclose(ranges, [wanted.min(0), wanted.max(0)], atol=1e-6)
    scaled = quantize_embeddings(rows, "int8", ranges).astype(int)
    assert np.abs(table["embedding_int8"].to_pylist() - scaled).max() <= 1
    assert table["embedding_ubinary"].to_pylist() == quantize_embeddings(rows, "ubinary").tolist()
    record = json.loads((output / "_lacos.json").read_text())
    assert record["complete"]
    assert set(record["plan"]["inputs"].values()) == {
        str(folder / name) for name in ("a.jsonl", "b.csv.gz", "below/c.parquet")
    }


@pytest.mark.slow
def test_a_second_run_encodes_only_the_rest_and_a_bad_row_is_named(two_processors, folder, tmp_path):
    output, run = tmp_path / "out", {"precision": "int8", "part_size": 4, "actors": 2, **QUIET}
    encode_files(static_model, folder, output, **run)
    before = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
    lost = sorted(before)[::4]
    for name in lost:
        (output / name).unlink()
    result = encode_files(static_model, [folder, folder / "a.jsonl"], output, **run)
    assert result.resumed_at == 40 - sum(pq.read_metadata(output / name).num_rows for name in lost)
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == before
    assert sorted(path.name for path in output.iterdir() if path.suffix != ".parquet") == ["_lacos.json", "_ranges.npy"]
    (folder / "b.jsonl").write_text('{"id": 99, "text": "x"}\n{"id"\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: not valid JSON"):
        encode_files(static_model, folder, output, **run)
    (folder / "b.jsonl").write_text((folder / "a.jsonl").read_text())
    with pytest.raises(DataError, match=r"a\.jsonl and .*b\.jsonl have the same content: leave one out"):
        encode_files(static_model, folder, output, **run)
    (folder / "b.jsonl").unlink()
    (folder / "d.txt").write_text("no ids")
    with pytest.raises(DataError, match=r"Some files have a column of ids, others have none \('.*d\.txt'\)"):
        encode_files(static_model, folder, output, **run)


# -- what is refused before Ray is asked for anything


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": []}, r"precision=\[\] asks for no column"),
        ({"precision": ["float32", "int4"]}, "precision='int4' is not one of float32, float16"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"part_size": 0}, "part_size=0 must be at least 1"),
        ({"actors": -1}, "actors=-1 must be at least 1"),
        ({"gpus_per_actor": 1.5}, r"gpus_per_actor=1\.5 must be a part of one GPU or a whole number"),
        ({"ranges": "r.npy"}, "ranges are for precision='int8' or 'uint8'"),
        ({"ranges": "r.npy", "precision": "int8"}, r"ranges='r\.npy' cannot be read as an \.npy file: .*No such file"),
        ({"ranges": np.zeros(3), "precision": "int8"}, r"ranges must be \(2, dimension\).*not \(3,\)"),
        (
            {"output": "in/readme.md", "inputs": "in/a.jsonl"},
            r"readme\.md is a file: the engine 'ray' writes a directory",
        ),
        (
            {"output": "in", "inputs": "in/a.jsonl"},
            r"in holds what `encode` has not written \('_SUCCESS', 'a\.jsonl', ",
        ),
        ({"output": "in/out"}, r"lies in the input .*in, where the next run would read it"),
        ({"inputs": []}, "There are no inputs"),
        ({"inputs": ["in", "nowhere.txt"]}, r"nowhere\.txt cannot be read: No such file"),
        ({"column": "body"}, r"a\.jsonl: there is no column 'body'; it has 'id', 'text'"),
        ({"inputs": "empty"}, r"empty holds no file whose name ends in \.txt, \.csv"),
    ],
)
def test_wrong_arguments(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("asked Ray before looking"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = {"inputs": folder, "output": "out", **QUIET, **options}
    with pytest.raises(LacosError, match=message):
        encode_files(static_model, **options)
    assert not Path("out").exists()


def test_one_process_per_output(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("asked Ray before looking"))
    with (
        locked(tmp_path / "out"),
        pytest.raises(LacosError, match=rf"Another process \(process {os.getpid()}\) is writ"),
    ):
        encode_files(static_model, folder, tmp_path / "out", **QUIET)


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a directory where even root may not write")
def test_a_read_only_directory(folder):
    with pytest.raises(LacosError, match=r"/sys/kernel cannot be written: .*\. Choose an output elsewhere"):
        encode_files(static_model, folder, "/sys/kernel/out", **QUIET)


def test_a_missing_extra_names_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(LacosError, match=r"pip install 'lacos-st\[ray\]'"):
        encode_files(static_model, folder, tmp_path / "out", **QUIET)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encode m IN --output x.npy --actors 2", "--actors is for --engine ray, which was not asked for."),
        ("encode m IN IN --output x.npy", "2 inputs ("),
        ("encode m IN --output x.npy --precision int8 ubinary", "2 precisions ('int8', 'ubinary') in one command need"),
        (
            "encode m IN --output o --engine ray --devices cpu",
            "--devices is for one process; Ray chooses: use --actors",
        ),
        ("encode m IN --output o --engine ray --gpus-per-actor 2.5", "gpus_per_actor=2.5 must be"),
        ("encode m IN --output o --engine ray --ranges r.npy", "ranges are for"),
    ],
)
def test_mistakes_on_the_command_line(line, message, folder, capsys):
    assert main(line.replace("IN", str(folder)).split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# -- what an actor gets


@pytest.mark.parametrize(
    ("nodes", "asked", "given"),
    [
        ([{"CPU": 8}], (None, None), (1, {"num_cpus": 8, "num_gpus": 0})),
        ([{"CPU": 8}], (3, None), (3, {"num_cpus": 2, "num_gpus": 0})),
        ([{"CPU": 8}, {"CPU": 4}], (None, None), (2, {"num_cpus": 4, "num_gpus": 0})),
        ([{"CPU": 8}, {"CPU": 4}], (3, 0), (3, {"num_cpus": 4, "num_gpus": 0})),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}], (None, None), (4, {"num_cpus": 1, "num_gpus": 1.0})),
        ([{"CPU": 16, "GPU": 1}], (None, 0.5), (2, {"num_cpus": 1, "num_gpus": 0.5})),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 1}], (None, 2), (2, {"num_cpus": 1, "num_gpus": 2})),
        ([{"CPU": 16, "GPU": 4}], (None, 0), (1, {"num_cpus": 16, "num_gpus": 0})),
        (
            [{"CPU": 2}],
            (3, None),
            "3 actors with a processor each do not fit: Ray has 2 processors and 0 GPUs on 1 mac",
        ),
        ([{"CPU": 8}], (None, 1), "1 actors with 1 GPUs and a processor each do not fit"),
        ([{"CPU": 8, "GPU": 1}], (2, None), "2 actors with 1 GPUs and a processor each do not fit"),
    ],
)
def test_actors_share_what_there_is(monkeypatch, nodes, asked, given):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    if isinstance(given, str):
        with pytest.raises(LacosError, match=given):
            cluster.share(*asked)
    else:
        assert cluster.share(*asked) == given


# -- for real


@pytest.mark.slow
def test_the_command_is_quiet_and_leaves_no_process(folder, tmp_path):
    command = [sys.executable, "-m", "lacos_st.cli", "encode", "lacos-bloom", str(folder), "--engine", "ray"]
    command += ["--actors", "2", "--output", str(tmp_path / "out")]
    before = {process.pid for process in psutil.process_iter() if "ray" in " ".join(process.cmdline())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.startswith(
        f"Wrote {tmp_path / 'out'}: 40 rows of 512 in 3 files (id, embedding), 8 without text"
    )
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    others = [line for line in said if " texts" not in line and "files checked" not in line]
    assert len(others) == 1, others
    assert "readme.md" in others[0]
    after = {process.pid for process in psutil.process_iter() if "ray::" in " ".join(process.cmdline())}
    assert after <= before


@pytest.mark.slow
def test_an_error_in_an_actor_comes_through_and_what_died_is_started_anew(two_processors, folder, tmp_path):
    def broken():
        model = static_model()
        model[0].embedding.weight.data[WORDS.index("ζήτα") + 1] = float("nan")
        return model

    with pytest.raises(
        LacosError, match=r"^The model gave NaN or infinity for row \d+ \(from 0\) of .*'.*ζήτα[^\n]*$"
    ) as kept:
        encode_files(broken, folder, tmp_path / "nan", part_size=4, **QUIET)
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2:  # the error that is kept keeps no actor
        assert time.monotonic() < until, kept
        time.sleep(0.1)

    def deadly():
        model = static_model()
        encode = model.encode

        def wrapped(texts, **options):
            if any("吉他" in text for text in texts):
                time.sleep(1)  # in which the part before is told
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(texts, **options)

        model.encode = wrapped
        return model

    with pytest.raises(LacosError, match=r"5 processes died over rows \d+ to \d+ \(from 0\) of "):
        encode_files(deadly, folder, tmp_path / "deadly", part_size=4, **QUIET)
    assert list((tmp_path / "deadly").glob("*.parquet"))  # others are delivered, and kept
    result = encode_files(static_model, folder, tmp_path / "nan", part_size=4, actors=2, **QUIET)
    assert result.rows == 40
    assert sorted(map(int, pq.read_table(tmp_path / "nan")["id"].to_pylist())) == list(range(40))


@pytest.mark.slow
def test_killed_actors_and_drivers_lose_no_row_and_write_none_twice(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "ray_engine.py"
    command = [sys.executable, script, "--directory", tmp_path / "d", "--rows", "80000", "--kills", "5"]
    subprocess.run([*command, "--output", tmp_path / "found.json"], check=True, timeout=3000)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [kill["killed"] for kill in found["kills"]] == ["actor", "driver"] * 2 + ["actor"]
    assert found["disturbed"]["lowest cosine"] >= 0.9999
    assert {key: found["disturbed"][key] for key in ("rows", "rows lost", "rows twice", "left over")} == {
        "rows": [80000, 80000], "rows lost": 0, "rows twice": 0, "left over": ["_lacos.json"],
    }  # fmt: skip


@pytest.mark.slow
def test_an_output_that_vanishes_while_actors_work(two_processors, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"alpha {row}\n" for row in range(400_000)))
    code = (
        "import shutil, sys, threading, time; from pathlib import Path\n"
        "out = Path(sys.argv[1])\n"
        "while not list(out.glob('*.parquet')): time.sleep(0.02)\n"
        "out.rename(out.with_name('elsewhere'))"
    )
    gone = pytest.raises(LacosError, match=r"is not there on|cannot be written: No such file")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]), gone:
        encode_files(static_model, tmp_path / "in.txt", tmp_path / "out", part_size=1000, show_progress=False)
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    time.sleep(1)
    result = encode_files(static_model, tmp_path / "in.txt", tmp_path / "out", part_size=1000, show_progress=False)
    assert 0 < result.resumed_at < result.rows == 400_000
    ids = pq.read_table(tmp_path / "out", columns=["id"])["id"]
    assert len(ids.unique()) == len(ids) == 400_000


@pytest.mark.slow
def test_a_disk_that_fills_up_while_actors_work(two_processors, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount a small disk")
    (tmp_path / "in.txt").write_text("".join(f"beta {row}\n" for row in range(200_000)))
    code = (
        "import sys, time; from pathlib import Path\n"
        "disk = Path(sys.argv[1])\n"
        "while not list(disk.glob('out/*.parquet')): time.sleep(0.02)\n"
        "with (disk / 'other').open('wb') as file:\n"
        "    while True: file.write(bytes(4096)); file.flush()"
    )
    try:
        full = pytest.raises(
            LacosError, match=r"out cannot be written: No space left on device\. What was encoded is k"
        )
        with subprocess.Popen([sys.executable, "-c", code, disk], stderr=subprocess.DEVNULL), full:
            encode_files(static_model, tmp_path / "in.txt", disk / "out", part_size=1000, show_progress=False)
        (disk / "other").unlink()
        result = encode_files(static_model, tmp_path / "in.txt", disk / "out", part_size=1000, show_progress=False)
        assert 0 < result.resumed_at < result.rows == 200_000
        ids = pq.read_table(disk / "out", columns=["id"], page_checksum_verification=True)["id"]
        assert len(ids.unique()) == len(ids) == 200_000
    finally:
        subprocess.run(["umount", disk], check=True)
