"""`recipes/bloom-mini/space.py`: the first teacher's space, turned onto a student that has one of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import space

HIDDEN = 32


@pytest.fixture
def first():
    """300 unit vectors whose energy lies in the leading dimensions, as a teacher's does."""
    rows = np.random.default_rng(0).standard_normal((300, 384)) * 0.9 ** np.arange(384)
    return space.unit(rows).astype(np.float32)


def test_students_own_directions_are_found_and_its_silent_dimensions_left(first):
    random = np.random.default_rng(1)
    size = HIDDEN - 2
    turned, other = (np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2))
    student = space.unit(np.pad(first[:, :size] @ turned, ((0, 0), (0, 2)))).astype(np.float32)
    found = space.onto(first, student)
    assert found.shape == (384, HIDDEN)
    np.testing.assert_allclose(found[:, :-2].T @ found[:, :-2], np.eye(size), atol=1e-5)
    np.testing.assert_array_equal(found[:, -2:], 0)
    assert (space.unit(first @ found) * student).sum(1).mean() > 0.98
    elsewhere = space.unit(first[:, :size] @ other)  # another turn of the same space
    assert (elsewhere * student[:, :size]).sum(1).mean() < 0.5


def test_kept_turn_is_the_space(tmp_path, first):
    (tmp_path / "teacher.json").write_text(json.dumps({"chunks": 1}))
    np.save(tmp_path / "teacher.npy", first.astype(np.float16))
    leading = space.turn(tmp_path, HIDDEN)
    energy = np.square(first @ leading).sum(1).mean()
    assert energy > 0.99
    np.save(tmp_path / f"turn-{HIDDEN}.npy", np.flip(leading, 0))
    np.testing.assert_array_equal(space.turn(tmp_path, HIDDEN), np.flip(leading, 0))
