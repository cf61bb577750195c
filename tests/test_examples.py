"""Each example runs in a process of its own, as a reader runs it, and what it prints is true.

`make examples` runs all of them, the notebooks too; the default suite runs the first.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
MOST_BYTES = 150_000  # of a committed notebook, its pictures in it


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def quickstart(said: str) -> None:
    best = dict(re.findall(r"\n\n(.+)\n +\d\.\d\d  (.+)", said))
    assert best["Someone is making music"] == "A man is playing the guitar on stage."
    assert best["Dogs are running"] == "Deux chiens courent dans la neige."
    assert best["Children play football"] == "孩子们在公园里踢足球。"


def train_csv(said: str) -> None:
    before, after = map(int, re.search(r"(\d+) before, (\d+) after", said).groups())
    assert 10 < before < after <= 20


def matryoshka(said: str) -> None:
    rows = [numbers(line) for line in said.splitlines() if re.fullmatch(r" *\d+ +\d+\.\d+ +\d+\.\d+", line)]
    assert [row[0] for row in rows] == [512, 64, 16]
    for size, before, after in rows:
        assert after > before, size


def hard_negatives(said: str) -> None:
    pairs, triplets = map(int, re.search(r"(\d+) pairs, (\d+) triplets", said).groups())
    assert pairs == 1500
    assert 1000 < triplets <= pairs
    for _, positive, negative in re.findall(r"anchor +(.+)\npositive +(.+)\nnegative +(.+)", said):
        assert positive != negative


def search_index(said: str) -> None:
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in said.splitlines()) if len(cells) == 8}
    recall = {name: float(cells[2]) for name, cells in rows.items() if cells[2].strip()[:1].isdigit()}
    size = {name: int(rows[name][5].replace(",", "")) for name in recall}
    assert recall["float32, exact"] == 1
    assert recall["int8"] > 0.98
    assert recall["binary, 80 rescored with float32"] > recall["binary"] + 0.2
    assert recall["float32, first 128"] < recall["float32, first 256"] < 1
    assert size["float32, exact"] > 3.9 * size["int8"] > 30 * size["binary"]
    assert "His office is near the train station." in said


def clustering(said: str) -> None:
    assert float(said.split()[-1]) > 0.7


def paraphrases(said: str) -> None:
    every, among, nearest = re.search(r"pairs: ([\d.]+); of the (\d+) among .*: ([\d.]+)", said).groups()
    assert float(nearest) > float(every) + 1
    assert int(among) > 50


def adapters(said: str) -> None:
    topic, opinion = said.split("adapter opinion")
    assert topic.index("The garden was horrible.") < topic.index("The lesson was great.")
    assert opinion.index("The lesson was great.") < opinion.index("The garden was horrible.")
    of_topic, of_opinion = (numbers(part.rpartition("the same")[2]) for part in (topic, opinion))
    assert of_topic[0] > of_opinion[0]
    assert of_opinion[1] > of_topic[1]


def evaluate_sts(said: str) -> None:
    assert "en-ar" in said
    assert "lacos-bloom" in said


def encode_corpus(said: str) -> None:
    sizes = {name: int(size.replace(",", "")) for name, size in re.findall(r"(\S+) .* ([\d,]+) bytes", said)}
    assert sizes["corpus.npy"] == 1000 * 512 * 4 + 128
    assert "perro" in said.partition("A dog runs")[2]


CHECKS = [
    quickstart, train_csv, matryoshka, hard_negatives, search_index, clustering, paraphrases, adapters, evaluate_sts,
    encode_corpus,
]  # fmt: skip


def slow_but_the_first(checks):
    return [
        pytest.param(check, marks=[pytest.mark.slow] if i else [], id=check.__name__) for i, check in enumerate(checks)
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", slow_but_the_first(CHECKS))
def test_an_example_runs_and_what_it_prints_is_true(check, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{check.__name__}.py"], cwd=tmp_path, capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
    check(done.stdout)


def test_every_example_is_tested_and_in_the_list():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {check.__name__ for check in CHECKS} <= scripts
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [path.relative_to(EXAMPLES) for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("notebooks/*.ipynb"))]
    assert [str(path) for path in files if f"]({path.as_posix()})" not in listed] == []


NOTEBOOKS = sorted(EXAMPLES.glob("notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    shown, book = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()

    def printed(cells):
        return [o.text for c in cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stdout"]

    for now, then in zip(printed(book.cells), printed(shown.cells), strict=True):
        assert re.sub(r"[\d.,-]+", "", now).split() == re.sub(r"[\d.,-]+", "", then).split()
        assert numbers(now) == pytest.approx(numbers(then), abs=0.1), "the same on another processor, but for rounding"
