"""Rows as a search: what is right, what lies in the pool, and which queries ask nothing."""

from datasets import Dataset

from lacos_st.data.retrieval import as_retrieval


def test_every_positive_of_a_query_is_right_and_equal_texts_are_one():
    rows = {
        "anchor": ["lost card", "lost  card ", "no login", "late parcel"],
        "positive": ["Block it.", "Call us.", "Reset it.", "Call\tus."],
        "negative": ["Reset it.", "Reset  it.", "Call us.", "Wait."],
    }
    for given in (rows, Dataset.from_dict(rows)):
        task = as_retrieval(given)
        assert list(task.queries.values()) == ["lost card", "no login", "late parcel"]
        assert list(task.corpus.values()) == ["Block it.", "Reset it.", "Call us.", "Wait."]
        right = [{task.corpus[i] for i in task.relevant[query]} for query in task.queries]
        assert right == [{"Block it.", "Call us."}, {"Reset it."}, {"Call us."}]


def test_a_query_that_lies_in_the_pool_is_left_out():
    task = as_retrieval({"anchor": ["a", "b", "c"], "positive": ["b", "x", "y"], "negative": ["z", " c ", "z"]})
    assert list(task.queries.values()) == ["a"]
    assert task.relevant.keys() == task.queries.keys()
    assert list(task.corpus.values()) == ["b", "z", "x", " c ", "y"]
    assert not as_retrieval({"anchor": ["a", "b"], "positive": ["a", "b"]}).queries
