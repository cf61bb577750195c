"""The report: one page that needs nothing else, and works in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lacos_st.errors import LacosError
from lacos_st.evaluation.report import write_report
from lacos_st.evaluation.results import LEXICAL, Evaluation, SetResult
from lacos_st.evaluation.statistics import spearman

SETS = [
    ("STS17", "en-en", ("en",)),
    ("STS17", "en-tr", ("en", "tr")),
    ("STSBenchmark", "default", ("en",)),
    ("local-<b>x</b>", "es", ("es",)),
]


def make(model, noise, sets=SETS, pairs=60):
    found = []
    for position, (task, subset, languages) in enumerate(sets):
        rng = np.random.default_rng(position)
        gold = rng.integers(0, 6, pairs).astype(float)
        similarity = gold / 10 + noise * rng.normal(size=pairs)
        revision = "tfidf" if model == LEXICAL else "0123456789abcdef"
        score = spearman(gold, similarity)
        found.append(SetResult(model, revision, task, subset, "test", languages, score, 1.5, "data", similarity, gold))
    return found


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation.of_sets([*make("before", 0.5), *make("after", 0.1), *make(LEXICAL, 0.3)])


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    return write_report(evaluation, tmp_path_factory.mktemp("report") / "report.html", title="Scores & more")


def test_the_page_and_its_plots_are_written(report):
    assert [path.name for path in report] == [
        "report.html",
        "report-languages.png",
        "report-languages.svg",
        "report-scatter.png",
        "report-scatter.svg",
    ]
    assert report[1].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in report[2].read_text()
    assert len(list(report[0].parent.iterdir())) == 5


def test_the_page_refers_to_nothing_outside_itself(report):
    page = report[0].read_text()
    assert not re.findall(r"""(?:src|href|action)\s*=|@import|url\(|<link|fetch\(|XMLHttpRequest""", page)
    # addresses: the name of SVG alone, and sources in text without a scheme
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "<!--" not in page.split("<body>")[1]


def test_the_page_says_what_was_found(report, evaluation):
    page = report[0].read_text()
    assert "<title>Scores &amp; more</title>" in page
    assert "local-&lt;b&gt;x&lt;/<wbr>b&gt;/<wbr>es" in page
    assert "<b>x</b>" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    for name in evaluation.models:
        assert name in page
    for result in evaluation.of("after@01234567").values():
        assert f">{result.score:.2f} <small>" in page
    assert "English, mean of 1" in page
    assert "other languages, mean of 1" in page
    assert "<h2>after@01234567 less before@01234567</h2>" in page
    heads = re.search(r"<table class=comparison><thead>(.*?)</thead>", page)[1]
    shown = ["set or mean", "before@01234567", "after@01234567", "difference", "p"]
    assert re.findall(r">([^<>]+)<", heads) == shown
    assert "Beside published results: STS17" in page


def test_data_inside_the_script_cannot_end_it(tmp_path):
    sets = [("local-</script><script>alert(1)", "en", ("en",))]
    page = write_report(Evaluation.of_sets(make("m", 0.1, sets)), tmp_path / "r.html")[0].read_text()
    assert "</script><script>alert" not in page
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(content[1])[0]["name"] == "local-</script><script>alert(1)/en"


def test_a_large_set_is_thinned_and_the_page_stays_small(tmp_path):
    sets = [("local-x", code, (code,)) for code in ("en", "es", "fr")]
    page = write_report(Evaluation.of_sets(make("m", 0.1, sets, pairs=5000)), tmp_path / "r.html")[0]
    content = re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)
    assert [len(entry["gold"]) for entry in json.loads(content[1])] == [400, 400, 400]
    assert page.stat().st_size < 100_000


def test_one_model_and_a_constant_one(tmp_path):
    found = make("m", 0.1)
    flat = np.full(60, 0.5)
    found[0] = SetResult(
        *[getattr(found[0], f) for f in ("model", "revision", "task", "subset", "split", "languages")],
        float("nan"),
        1.0,
        "data",
        flat,
        found[0].gold,
    )
    page = write_report(Evaluation.of_sets(found), tmp_path / "r.html")[0].read_text()
    assert "Paired bootstrap" not in page
    assert ">nan<" in page or ">nan" in page


def test_results_are_read_from_directories(tmp_path, evaluation):
    for position, model in enumerate(("before", "after")):
        for result in evaluation.of(f"{model}@01234567").values():
            result.save(tmp_path / str(position) / "details")
    page = write_report([tmp_path / "0", tmp_path / "1"], tmp_path / "r.html")[0].read_text()
    assert page.index("before@01234567") < page.index("after@01234567")


def test_wrong_input_is_told_so(tmp_path, evaluation):
    with pytest.raises(LacosError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(LacosError, match=r"end in \.html, not 'r\.pdf'"):
        write_report(evaluation, tmp_path / "r.pdf")
    with pytest.raises(LacosError, match="no models"):
        write_report(Evaluation(), tmp_path / "r.html")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: Path, fragment: str = "", width: int = 1280) -> str:
    """The page as the browser has it after its script ran; anything on the network would fail."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files",
            "--virtual-time-budget=4000", "--dump-dom", f"--user-data-dir={page.parent / 'profile'}",
            f"{page.as_uri()}{fragment}",
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_comparison_of_long_names_fits_a_phone(tmp_path):
    names = ["lacos-bloom", "paraphrase-multilingual-MiniLM-L12-v2"]
    sets = [*SETS, ("STSBenchmarkMultilingualSTS", "es", ("es",))]
    found = [result for i, name in enumerate(names) for result in make(name, 0.5 - 0.4 * i, sets)]
    write_report(Evaluation.of_sets(found), tmp_path / "r.html")
    # a window is 500 wide at least: a frame is as narrow as a phone
    (tmp_path / "phone.html").write_text(
        """<iframe src="r.html" style="width: 390px; height: 900px; border: 0"></iframe><p></p><script>onload = () => {
        const box = frames[0].document.querySelector(".comparison").parentElement;
        document.querySelector("p").textContent = box.scrollWidth + " in " + box.clientWidth; }</script>"""
    )
    wide, room = map(int, re.search(r"<p>(\d+) in (\d+)</p>", browse(tmp_path / "phone.html")).groups())
    assert 300 < room < 390
    assert wide <= room


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_real_browser_draws_and_sorts(report):
    drawn = browse(report[0])
    assert 'data-ready="yes"' in drawn
    plots = re.search(r'<div id="plots">(.*?)</div>', drawn, re.S)[1]
    assert plots.count("<svg") == 2
    assert plots.count("<circle") == 2 * 60
    assert drawn.count("<option") == 4

    def order(dom):
        body = re.search(r'id="sets">.*?<tbody>(.*?)</tbody>', dom, re.S)[1]
        return [float(row) for row in re.findall(r'<td data-value="([-\d.]+)">', body)][::5]

    rising = order(browse(report[0], "#sort=1a"))
    assert rising == sorted(rising)
    assert len(rising) == 4
    assert order(browse(report[0], "#sort=1d")) == rising[::-1]
    assert 'aria-sort="descending"' in browse(report[0], "#sort=1d")
