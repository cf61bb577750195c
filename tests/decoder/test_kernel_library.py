"""The compiled kernels: where they are kept, what is loaded from there, and what happens where they cannot be had."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from lacos_st.decoder import kernels
from lacos_st.embedded import unpack as embedded
from lacos_st.errors import LacosError

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")
can_int8 = pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="no CPU for the kernels")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, in a process that has loaded nothing yet."""
    monkeypatch.setenv("LACOS_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "FLAGS", [flag.replace("-O3", "-O0") for flag in kernels.FLAGS])  # compiles faster
    kernels.library.cache_clear()
    yield tmp_path / "lacos-st" / "kernels"
    monkeypatch.undo()
    kernels.library.cache_clear()


@pytest.fixture
def compilations(monkeypatch):
    """The compiler's calls, which go through."""
    calls, run = [], kernels.subprocess.run
    monkeypatch.setattr(kernels.subprocess, "run", lambda *a, **k: (calls.append(a), run(*a, **k))[1])
    return calls


def loaded() -> bool:
    """Whether kernels can be had by a process that asks for the first time, and compute."""
    kernels.library.cache_clear()
    if not kernels.usable(torch.ones(1, 1)):
        return False
    q, s = kernels.quantize(torch.tensor([[1.0, -2.0]]))
    return q.tolist() == [[64, -127]] and s.tolist() == pytest.approx([2 / 127])


def no_home(monkeypatch):
    """As in a container that runs under a user id without an entry in the password file."""

    def raises(self):
        raise RuntimeError("Could not determine home directory.")

    for name in ("LACOS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", raises)
    monkeypatch.setattr(Path, "expanduser", raises)


@pytest.mark.parametrize("compiler", [None, "/bin/false", "/no/such/compiler", "echo"])
def test_without_a_compiler_that_works_torch_serves_and_says_so_once(compiler, tiny_model, cache, monkeypatch, caplog):
    if compiler is None:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, "lacos_st.decoder.kernels"):
        assert not kernels.usable(torch.ones(1, 1))
        assert tiny_model.eval().encode(["a man plays"]).shape == (1, 64)
    (record,) = caplog.records
    assert "8-bit layers run without their C kernels" in record.getMessage()
    assert ("no C compiler" in record.getMessage()) is (compiler is None)
    assert not list(cache.rglob("*.so"))


@pytest.mark.parametrize(("features", "level"), [({"avx2": True}, logging.WARNING), ({}, logging.INFO)])
def test_only_a_cpu_that_could_have_them_is_told(features, level, cache, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setenv("CC", "/bin/false")
    with caplog.at_level(logging.INFO, "lacos_st.decoder.kernels"):
        assert kernels.library() is None
    assert [record.levelno for record in caplog.records] == [level]


@needs_compiler
def test_the_library_is_built_once_and_whole(cache, compilations):
    assert loaded()
    assert loaded()
    assert len(compilations) == 1
    (kept,) = cache.iterdir()
    assert kept.suffix == ".so"
    assert cache.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"\1" * 9])
def test_a_damaged_library_is_built_again(damage, cache, compilations):
    assert loaded()
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # it is mapped into this process
    kept.write_bytes(damage(whole))
    assert loaded()
    assert len(compilations) == 2
    (kept,) = cache.iterdir()
    assert kept.stem.endswith(kernels._digest(kept))


@needs_compiler
def test_a_whole_file_that_does_not_load_is_replaced(cache, compilations):
    cache.mkdir(mode=0o700, parents=True)
    other = cache / "other"
    other.write_bytes(b"no library")
    other.rename(cache / f"{kernels._key()}-{kernels._digest(other)}.so")
    assert loaded()
    assert len(compilations) == 1
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_a_build_that_fails_half_way_keeps_nothing(cache, monkeypatch, tmp_path):
    script = tmp_path / "cc"
    script.write_text('#!/bin/sh\nfor a; do last="$out"; out="$a"; case "$last" in -o) echo half > "$a";; esac; done\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert not loaded()
    assert list(cache.iterdir()) == []


@needs_compiler
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_nothing_is_loaded_from_or_put_into_a_folder_that_others_may_write(mode, cache, compilations):
    assert loaded()
    (kept,) = cache.iterdir()
    cache.chmod(mode)
    assert loaded(), "each process builds its own, out of others' reach"
    assert len(compilations) == 2
    assert list(cache.iterdir()) == [kept]


@needs_compiler
def test_nothing_is_loaded_from_a_folder_of_another_user(cache, compilations, monkeypatch):
    assert loaded()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert loaded()
    assert len(compilations) == 2


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_obstacle(cache, monkeypatch):
    cache.parent.parent.joinpath("lacos-st").write_text("a file in the way")
    assert loaded()


@needs_compiler
def test_without_a_home_directory_the_kernels_serve(monkeypatch, tiny_model):
    expected = tiny_model.eval().encode(["a man plays"])
    no_home(monkeypatch)
    kernels.library.cache_clear()
    try:
        assert loaded()
        assert abs(tiny_model.encode(["a man plays"]) - expected).max() < 1e-6
        with pytest.raises(LacosError, match="no home directory"):
            embedded.embedded_directory("bloom-mini")
    finally:
        monkeypatch.undo()
        kernels.library.cache_clear()
