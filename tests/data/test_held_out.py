"""What chooses the best step is not trained on, and little is lost."""

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from lacos_st.data.held_out import MOST, hold_out
from lacos_st.errors import LacosError

# Sources of rows: a pair's number, and how many negatives the source has.
SOURCES = st.lists(
    st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=120), st.integers(0, 2)), min_size=1, max_size=4
)


def source(pairs, negatives):
    columns = {"anchor": [f"a{i}" for i in pairs], "positive": [f"p{i}" for i in pairs]}
    columns |= {f"negative_{k}": [f"n{row} {k}" for row in range(len(pairs))] for k in range(negatives)}
    return Dataset.from_dict(columns)


def pairs_of(data):
    return [*zip(data["anchor"][:], data["positive"][:], strict=True)]


@settings(max_examples=60, deadline=None)
@given(SOURCES, st.integers(0, 3))
def test_a_tenth_of_the_pairs_each_once_and_all_other_rows_are_trained_on(sources, seed):
    data = DatasetDict({str(i): source(*each) for i, each in enumerate(sources)})
    every = {pair for part in data.values() for pair in pairs_of(part)}
    if len(every) < 20:
        with pytest.raises(LacosError, match=f"have {len(every)} different pairs"):
            hold_out(data, seed)
        return
    training, held = hold_out(data, seed)
    assert len(held) == len(set(pairs_of(held))) == len(every) // 10
    for name, part in data.items():
        left = [pair for pair in pairs_of(part) if pair not in set(pairs_of(held))]
        assert left == (pairs_of(training[name]) if name in training else [])
    assert len(held.column_names) == min(len(part.column_names) for part in data.values())


def test_at_most_so_many_and_others_by_another_seed():
    data = DatasetDict({"all": source(range(6000), 1)})
    chosen = [set(pairs_of(hold_out(data, seed)[1])) for seed in (0, 0, 1)]
    assert len(chosen[0]) == MOST
    assert chosen[0] == chosen[1] != chosen[2]


def test_white_space_makes_no_other_pair():
    rows = {"anchor": [f"a  {i}" for i in range(40)] + [f"a {i} " for i in range(40)], "positive": ["p"] * 80}
    training, held = hold_out(DatasetDict({"all": Dataset.from_dict(rows)}), 0)
    assert (len(held), len(training["all"])) == (4, 72)
