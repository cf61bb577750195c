"""A model takes the place of another whole, wherever a kill or a failing disk interrupts it."""

import errno
import itertools
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise, tree

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.placing import finish_move, move_into

TEXTS = list(CORPUS[:4])
OWN = ("notes.md", "adapter/notes.md", "1_Pooling/mine.txt")


@pytest.fixture(scope="module")
def models(tiny_bloom, tmp_path_factory):
    """One model in the three forms that differ in their files, with what it embeds."""
    folder = tmp_path_factory.mktemp("models")
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    model.add_lora(rank=2, name="second")
    model.set_adapter("default")
    model.save(str(folder / "whole"), create_model_card=False)
    model.save(str(folder / "adapter"), create_model_card=False, self_contained=False)
    model.delete_adapter("second")
    model.merge_adapter().save(str(folder / "merged"), create_model_card=False)
    return folder


class Killed(BaseException):
    """Nothing in the package catches it, as nothing catches a kill."""


def killed(step: int, action, *arguments) -> bool:
    """Do it until before its file operation number `step`; whether there was one."""
    count = itertools.count()

    def counted(operation):
        def run(*args, **kwargs):
            if next(count) == step:
                raise Killed
            return operation(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action(*arguments)
        except Killed:
            return True
    return False


def model_in(directory: Path) -> dict[str, bytes]:
    return {
        name: content for name, content in tree(directory).items() if name not in OWN and not name.startswith(".lacos")
    }


@pytest.mark.parametrize(
    ("old", "new"), [("whole", "merged"), ("adapter", "merged"), ("merged", "whole"), ("whole", "adapter")]
)
def test_killed_at_any_file_a_directory_holds_the_old_model_or_the_new_one(old, new, models, tmp_path):
    (tmp_path / "old").mkdir()
    shutil.copytree(models / old, tmp_path / "old", dirs_exist_ok=True)
    for name in OWN:
        (tmp_path / "old" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "old" / name).write_text("mine")
    before, after = model_in(models / old), model_in(models / new)
    for step in itertools.count():
        target, stage = tmp_path / f"target-{step}", tmp_path / f"stage-{step}"
        shutil.copytree(tmp_path / "old", target)
        shutil.copytree(models / new, stage)
        was_killed = killed(step, move_into, stage, target)
        found = model_in(target)
        loads = {"config.json", "adapter_config.json"} & found.keys()  # stock classes need one of them in the root
        assert not loads or found in (before, after)
        begun = (target / ".lacos-incoming").exists()
        killed(step % 7, finish_move, target)  # putting it right may be killed too
        finish_move(target)
        assert model_in(target) == (after if begun or not was_killed else before)
        assert all((target / name).read_text() == "mine" for name in OWN)
        assert not (target / ".lacos-incoming").exists()
        if not was_killed:
            break
    assert step > 10


def test_an_interrupted_save_is_finished_by_whoever_loads_the_model(models, tmp_path, monkeypatch):
    target = tmp_path / "model"
    shutil.copytree(models / "whole", target)
    merged = LacosSentenceTransformer(models / "merged")
    replace, calls = os.replace, itertools.count()

    def fails_at_the_seventh(*args):
        if next(calls) == 6:
            raise OSError(errno.EIO, "Input/output error")
        replace(*args)

    monkeypatch.setattr(os, "replace", fails_at_the_seventh)
    with pytest.raises(LacosError, match=r"not wholly in place .*Input/output error.*what is missing lies there"):
        merged.save(str(target))
    with pytest.raises((OSError, ValueError), match=r"config.json|Unrecognized model"):
        SentenceTransformer(str(target))
    loaded = LacosSentenceTransformer(target)
    np.testing.assert_array_equal(loaded.encode(TEXTS), merged.encode(TEXTS))
    assert not loaded.transformer.adapter_names
    assert not (target / ".lacos-incoming").exists()


def test_a_save_that_cannot_be_finished_is_refused_by_name(models, tmp_path, monkeypatch):
    target = tmp_path / "model"
    shutil.copytree(models / "whole", target)

    def fails(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(LacosError, match="it is read-only"):
        LacosSentenceTransformer(models / "merged").save(str(target))
    with pytest.raises(LacosError, match=r"saved to '.*model' is not wholly in place \(it is read-only\)"):
        LacosSentenceTransformer(target)
    monkeypatch.undo()
    LacosSentenceTransformer(models / "whole").save(str(target))  # saved again, over what is half there
    assert LacosSentenceTransformer(target).transformer.adapter_names == ["default", "second"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX'")
@pytest.mark.parametrize(("umask", "modes"), [(0o027, {0o640, 0o750}), (0o077, {0o600, 0o700})])
def test_saving_obeys_the_umask(umask, modes, models, tmp_path):
    model = LacosSentenceTransformer(models / "whole")
    before = os.umask(umask)
    try:
        model.save(str(tmp_path / "new"))
        (tmp_path / "empty").mkdir()
        model.save(str(tmp_path / "empty"))
    finally:
        os.umask(before)
    for directory in (tmp_path / "new", tmp_path / "empty"):
        assert {stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.rglob("*"))} == modes
