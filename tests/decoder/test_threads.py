"""A busy machine, and processes that are forked from one in which a model was loaded or has encoded."""

import logging
import os
import signal

import datasets
import pytest
import torch

from lacos_st.decoder import kernels, threads

TEXTS = [f"A man plays the guitar, and {number} dogs run through the grass." for number in range(16)]

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")


@pytest.fixture
def two_threads():
    """OpenMP's threads have started, as in any process that computes by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(2000, 2000).sum()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Sets how many threads want to run."""
    file = tmp_path / "loadavg"
    monkeypatch.setattr(threads, "_LOAD", file)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return lambda running: file.write_text(f"0.20 0.18 0.12 {running}/80 11206\n", encoding="ascii")


def test_a_machine_is_busy_when_more_want_to_run_than_there_are_processors(load):
    assert not threads.is_busy(), "no such file on this system"
    for running, expected in ((1, False), (4, False), (5, True)):
        load(running)
        assert threads.is_busy() is expected
    threads._LOAD.write_text("unknown", encoding="ascii")
    assert not threads.is_busy()


@needs_compiler
def test_a_busy_machine_gets_one_thread_for_as_long_as_a_model_computes(load, two_threads, tiny_model):
    seen = []
    tiny_model[1].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    tables = []
    for running in (1, 9, 1):
        load(running)
        tables.append(tiny_model.eval().encode(TEXTS))
        assert torch.get_num_threads() == 2
    assert seen == [2, 1, 2]
    assert (tables[0] == tables[1]).all()


@needs_compiler
def test_the_number_comes_back_after_an_error(load, two_threads):
    load(9)
    seen = []

    @threads.as_many_threads_as_serve()
    def fail():
        seen.append(torch.get_num_threads())
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_without_kernels_nothing_changes(load, two_threads, monkeypatch):
    load(9)
    monkeypatch.setattr(kernels, "library", lambda: None)
    with threads.as_many_threads_as_serve():
        assert torch.get_num_threads() == 2


def alone_in_the_child(model, expected) -> None:
    """Encode in a forked process, which must end well before the alarm kills it."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = abs(model.encode(TEXTS) - expected).max() < 1e-6
        os._exit(0 if same and torch.get_num_threads() == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0, "14 is a child that hung"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("form", ["w8a8", "w8a16"])
def test_a_process_forked_after_loading_and_after_encoding_encodes(two_threads, tiny_bloom, form):
    from lacos_st.model.model import LacosSentenceTransformer

    expected = LacosSentenceTransformer(tiny_bloom, transformer_options={"compute_form": form}).encode(TEXTS)
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"compute_form": form})
    torch.ones(2000, 2000).sum()
    alone_in_the_child(model, expected)
    model.encode(TEXTS)
    alone_in_the_child(model, expected)
    assert torch.get_num_threads() == 2


MODEL = None


def embed(batch):
    signal.alarm(60)  # a process of the pool that hung would keep its parent waiting
    assert MODEL is not None
    return {"embedding": MODEL.encode(batch["text"])}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_datasets_map_in_two_processes(two_threads, tiny_model, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    expected = tiny_model.eval().encode(TEXTS)
    monkeypatch.setitem(globals(), "MODEL", tiny_model)
    made = datasets.Dataset.from_dict({"text": TEXTS}).map(embed, batched=True, num_proc=2, new_fingerprint="embedded")
    assert abs(torch.tensor(made["embedding"]).numpy() - expected).max() < 1e-6
