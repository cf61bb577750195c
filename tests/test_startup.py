"""What a command imports before it needs it. Not how long that takes: machines that run tests are busy."""

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "sentence_transformers", "datasets", "numpy", "pandas", "pyarrow", "mteb", "sklearn")


def modules(code, folder):
    """Names of the top-level modules in a fresh process, at each `keep()` of the code."""
    head = "import json, sys\nkept = []\ndef keep():\n    kept.append(sorted({m.split('.')[0] for m in sys.modules}))\n"
    tail = "\nprint(json.dumps(kept), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", head + code + tail], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stderr.splitlines()[-1])]


def test_help_and_mistakes_in_a_line_load_no_library(tmp_path):
    code = """
from lacos_st.cli import main
from lacos_st.cli.parser import build_parser
from lacos_st import __version__
subcommands = next(action for action in build_parser()._actions if action.dest == "command").choices
lines = [["--help"], ["--version"], ["no-such-command"], ["train", "--no-such-option"]]
for line in lines + [[name, "--help"] for name in subcommands]:
    try:
        main(line)
    except SystemExit:
        pass
    else:
        raise AssertionError(line)
keep()
"""
    (loaded,) = modules(code, tmp_path)
    assert loaded.isdisjoint(HEAVY)


def test_encoding_loads_what_sentence_transformers_loads(tmp_path):
    (tmp_path / "texts.txt").write_text("A man plays guitar.\n", encoding="utf-8")
    code = """
import sentence_transformers
keep()
from lacos_st.cli import main
assert main(["encode", "lacos-bloom", "texts.txt", "--output", "texts.npy"]) == 0
assert main(["info", "lacos-bloom"]) == 0
assert main(["memory", "bloom-mini"]) == 0
keep()
"""
    before, after = modules(code, tmp_path)
    ours = {"lacos_st"}
    assert after - before - sys.stdlib_module_names <= ours


def test_writing_an_embedded_model_loads_no_sentence_transformers(tmp_path):
    (loaded,) = modules("from lacos_st.cli import main\nassert main(['init', 'model']) == 0\nkeep()", tmp_path)
    assert loaded.isdisjoint({"sentence_transformers", "datasets", "peft", "bitsandbytes", "sklearn", "pandas"})
