"""`recipes/bloom-mini/targets.py`: the first teacher's space, turned onto the student's."""

import json

import numpy as np
import pytest
import targets

HIDDEN = 32


@pytest.fixture
def first():
    """300 unit vectors whose energy lies in the leading dimensions, as a teacher's does."""
    rows = np.random.default_rng(0).standard_normal((300, 384)) * 0.9 ** np.arange(384)
    return targets.unit(rows).astype(np.float32)


def test_a_space_is_brought_to_another_by_a_turn_and_the_silent_dimensions_stay(first):
    random = np.random.default_rng(1)
    size = HIDDEN - 2
    turned, other = (np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2))
    student = targets.unit(np.pad(first[:, :size] @ turned, ((0, 0), (0, 2)))).astype(np.float32)
    found = targets.onto(first, student)
    assert found.shape == (384, HIDDEN)
    np.testing.assert_allclose(found[:, :-2].T @ found[:, :-2], np.eye(size), atol=1e-5)
    np.testing.assert_array_equal(found[:, -2:], 0)
    assert (targets.unit(first @ found) * student).sum(1).mean() > 0.98
    elsewhere = targets.unit(first[:, :size] @ other)  # another turn of the same space
    assert (elsewhere * student[:, :size]).sum(1).mean() < 0.5


def test_the_leading_dimensions_keep_the_energy(tmp_path, first):
    (tmp_path / "teacher.json").write_text(json.dumps({"chunks": 1}))
    np.save(tmp_path / "teacher.npy", first.astype(np.float16))
    leading = targets.turn(tmp_path, HIDDEN)
    np.testing.assert_array_equal(leading[:, -2:], 0)
    assert np.square(first @ leading).sum(1).mean() > 0.99
