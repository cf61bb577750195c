"""README's snippets run as they stand: Python in one process, commands that need no network or hour."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import blocks, check_printed, commands

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def run(arguments, folder):
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=280)


def test_python_runs_and_prints_what_the_readme_shows(tmp_path):
    """All blocks in their order, in one process: a later one loads what an earlier one saved."""
    found = blocks(README)
    code = "\n".join(block.text for block in found if block.kind == "python")
    (tmp_path / "readme.py").write_text(code, encoding="utf-8")
    done = run([sys.executable, "readme.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    shown = next(block.text for block in found if block.kind == "text")
    check_printed(shown, "\n".join(done.stdout.splitlines()[: len(shown.splitlines())]))


@pytest.mark.parametrize("command", commands(README), ids=" ".join)
def test_commands_are_understood(command, tmp_path):
    """Each is parsed as the command line does; those that work on what is in the package run."""
    from lacos_st.cli.parser import build_parser

    arguments = build_parser().parse_args(command[1:])
    if arguments.command in ("encode", "similarity"):
        (tmp_path / "corpus.jsonl").write_text('{"text": "A man plays guitar."}\n', encoding="utf-8")
        done = run([sys.executable, "-m", "lacos_st.cli", *command[1:]], tmp_path)
        assert done.returncode == 0, done.stderr


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
