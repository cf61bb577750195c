"""`Parts`: what is delivered is whole, of one plan, and never mixed with what is not ours."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lacos_st.encoding.parts import Parts, part_name
from lacos_st.errors import LacosError

PLAN = {"inputs": {"a" * 16: "/data/a.txt", "b" * 16: "/data/b.txt"}, "precision": ["int8"], "model": "m"}
ROWS = {part_name("a" * 16, 0): 4, part_name("a" * 16, 1): 2, part_name("b" * 16, 0): 3}


def deliver(parts: Parts, *names: str) -> None:
    for name in names:
        pq.write_table(pa.table({"id": list(range(ROWS[name]))}), parts.staged / f"{name}.x", write_page_checksum=True)
        parts.deliver(f"{name}.x", name)


@pytest.fixture
def begun(tmp_path):
    """Two of three parts are there."""
    parts = Parts(tmp_path / "out")
    assert parts.begin(PLAN, ROWS, True) == set()
    parts.keep_ranges(np.zeros((2, 3), np.float32))
    deliver(parts, *list(ROWS)[:2])
    return tmp_path / "out"


def test_what_is_there_is_kept_and_the_end_says_so(begun):
    parts = Parts(begun)
    assert parts.begin(PLAN, ROWS, True) == set(list(ROWS)[:2])
    assert parts.kept_ranges().shape == (2, 3)
    with pytest.raises(LacosError, match="should hold 3 parts and holds 2"):
        parts.finish(PLAN, ROWS)
    deliver(parts, list(ROWS)[2])
    parts.finish(PLAN, ROWS)
    assert sorted(path.name for path in begun.iterdir()) == ["_lacos.json", "_ranges.npy", *sorted(ROWS)]
    assert json.loads((begun / "_lacos.json").read_text()) == {"plan": PLAN, "complete": True}
    assert pq.read_table(begun).num_rows == 9  # readers of directories pass over the rest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": ["float32"]}, r"other settings \(precision: \['int8'\], now \['float32'\]\)"),
        ({"model": "n"}, r"other settings \(model: 'm', now 'n'\)"),
        ({"inputs": {"a" * 16: "/data/a.txt", "c" * 16: "/data/b.txt"}}, r"other input \(changed: '/data/b.txt'\)"),
        ({"inputs": {"a" * 16: "/data/a.txt"}}, r"other input \(gone: '/data/b.txt'\)"),
        ({"inputs": {**PLAN["inputs"], "c" * 16: "/data/c.txt"}}, r"other input \(new: '/data/c.txt'\)"),
    ],
)
def test_another_plan_is_refused_and_deletes_nothing(begun, change, message):
    before = sorted(path.name for path in begun.iterdir() if path.is_file())
    with pytest.raises(LacosError, match=message + r".*--no-resume"):
        Parts(begun).begin({**PLAN, **change}, ROWS, True)
    assert sorted(path.name for path in begun.iterdir() if path.is_file()) == before
    assert json.loads((begun / "_lacos.json").read_text())["plan"] == PLAN
    assert Parts(begun).begin({**PLAN, **change}, ROWS, False) == set()
    assert not [path for path in begun.iterdir() if re.search("parquet|ranges", path.name)]


def test_the_same_content_in_another_place_goes_on(begun):
    moved = {digest: path.replace("data", "mnt") for digest, path in PLAN["inputs"].items()}
    assert len(Parts(begun).begin({**PLAN, "inputs": moved}, ROWS, True)) == 2


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.99])
def test_a_part_that_was_cut_short_is_encoded_anew(begun, keep):
    name = next(iter(ROWS))
    os.truncate(begun / name, int((begun / name).stat().st_size * keep) if keep != 1 else 1)
    assert Parts(begun).begin(PLAN, ROWS, True) == {list(ROWS)[1]}
    assert not (begun / name).exists()


def test_flipped_bits_in_a_part_are_seen_by_its_readers(begun):
    path = begun / next(iter(ROWS))
    data = bytearray(path.read_bytes())
    data[30] ^= 1  # in the first page
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum|deserialize|thrift|snappy"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"plan": 3}'])
def test_parts_without_a_plan_are_refused(begun, content):
    (begun / "_lacos.json").write_text(content)
    with pytest.raises(LacosError, match=r"_lacos\.json, which says .* is missing or damaged"):
        Parts(begun).begin(PLAN, ROWS, True)
    assert Parts(begun).begin(PLAN, ROWS, False) == set()


def test_what_is_not_ours_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LacosError, match=r"holds what `encode` has not written \('notes.txt'\)"):
        Parts(tmp_path)


def test_a_process_of_a_dead_run_reaches_nothing(begun):
    dead = Parts(begun)
    dead.begin(PLAN, ROWS, True)
    live = Parts(begun)
    live.begin(PLAN, ROWS, True)
    assert not dead.staged.exists()
    assert live.staged != dead.staged
    with pytest.raises(LacosError, match=r"cannot be written: No such file"):
        dead.deliver("x", list(ROWS)[2])
