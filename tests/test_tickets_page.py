"""The page "Your tickets in 20 minutes": its blocks run in their order, and bring about what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_standin import TOKEN, hub

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "your-tickets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python|text)\n(.*?)```", PAGE, re.DOTALL)


def scores(text):
    """Accuracy and rank, before and after."""
    found = re.findall(r"(accuracy@1|MRR@10) x 100 +([\d.]+) +([\d.]+)", text)
    return {name: (float(before), float(after)) for name, before, after in found}


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = f'lacos-st() {{ {sys.executable} -m lacos_st.cli "$@"; }}; set -e\n'
    told = ""
    with hub() as server:
        environment = {
            **os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        for kind, block in BLOCKS:
            if kind == "text":
                continue
            run = ["bash", "-c", command + block] if kind == "bash" else [sys.executable, "-c", block]
            done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
            assert done.returncode == 0, (block, done.stderr[-3000:])
            told += done.stdout
        assert {"model.safetensors", "README.md"} <= set(server.repos["me/my-tickets"])
    shown = scores("\n".join(block for kind, block in BLOCKS if kind == "text"))
    found = scores(told)
    assert len(shown) == 2
    for name, (before, after) in shown.items():
        assert found[name][0] == pytest.approx(before, abs=3)
        assert found[name][1] == pytest.approx(after, abs=10)  # of 40 questions four: processors round otherwise
        assert found[name][1] > before + 10
