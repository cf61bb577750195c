"""LangChain, LlamaIndex and Haystack take a saved model by their stock classes: the blocks of the page run.

`make frameworks` installs them; without one its test is skipped.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import check_printed

from lacos_st.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "frameworks.md"
PARTS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("LangChain", "langchain_huggingface"),
        ("LlamaIndex", "llama_index.embeddings.huggingface"),
        ("Haystack", "haystack_integrations.components.embedders.sentence_transformers"),
    ],
)
def test_a_framework_takes_a_saved_model(name, module, tmp_path, monkeypatch):
    pytest.importorskip(module.partition(".")[0])
    monkeypatch.chdir(tmp_path)
    assert main(["init", "lacos-bloom"]) == 0
    code, shown = re.findall(r"^```(?:python|text)\n(.*?)^```$", PARTS[name], re.MULTILINE | re.DOTALL)
    code += "\nimport sys\nassert 'lacos_st' not in sys.modules\n"
    quiet = os.environ | {"HAYSTACK_TELEMETRY_ENABLED": "False", "ANONYMIZED_TELEMETRY": "False"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, env=quiet)
    assert done.returncode == 0, done.stderr
    check_printed(shown, done.stdout)
