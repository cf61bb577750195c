"""The page: adapters are switched for the window that asks, and mistakes are said before a model is loaded."""

import builtins
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import CORPUS, randomise

from lacos_st.cli import main
from lacos_st.demo.page import BASE_ALONE, Explorer, build, check_port, serve
from lacos_st.errors import LacosError

TEXT = "\n".join(CORPUS[:4])


@pytest.fixture(scope="module")
def explorer(tiny_bloom):
    """Over a model with two adapters that differ."""
    import torch

    from lacos_st.model.model import LacosSentenceTransformer

    torch.manual_seed(0)
    model = LacosSentenceTransformer(tiny_bloom).add_lora(rank=2, name="one").add_lora(rank=2, name="two")
    for name in ("one", "two"):
        model.set_adapter(name)
        randomise(model)
    return Explorer(model.eval())


def test_each_adapter_shows_its_own_and_the_base_shows_none(explorer):
    shown = {adapter: explorer.show(TEXT, "man", adapter) for adapter in ("one", "two", BASE_ALONE)}
    assert len(set(shown.values())) == 3
    for adapter, pictures in shown.items():
        assert explorer.show(TEXT, "man", adapter) == pictures, "switching back gives the same picture"
    with pytest.raises(LacosError, match="no adapter 'three': the model has"):
        explorer.show(TEXT, "man", "three")


def test_windows_with_other_adapters_do_not_mix(explorer):
    wanted = ["one", "two", BASE_ALONE] * 8
    alone = {adapter: explorer.show(TEXT, "", adapter) for adapter in set(wanted)}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda adapter: explorer.show(TEXT, "", adapter), wanted))
    assert found == [alone[adapter] for adapter in wanted]


def test_nothing_to_show_is_said(explorer):
    near, matrix, drawn = explorer.show(" \n", "man", "one")
    assert "Write some sentences" in near
    assert matrix == drawn == ""
    near, matrix, drawn = explorer.show(TEXT, " ", "one")
    assert "Ask for something" in near
    assert "The ring" not in drawn
    assert matrix


def test_the_neighbours_are_the_models(explorer):
    explorer.show(TEXT, "", "two")
    similarity = explorer.model.similarity(explorer.model.encode(["man"]), explorer.model.encode(CORPUS[:4]))[0]
    best = CORPUS[int(similarity.argmax())]
    near = explorer.show(TEXT, "man", "two")[0]
    assert near.index(f">{best}<") == min(near.index(f">{text}<") for text in CORPUS[:4])
    assert f">{float(similarity.max()):.2f}<" in near


def test_a_model_without_adapters_has_no_choice_of_them(tiny_bloom):
    from lacos_st.model.model import LacosSentenceTransformer

    assert Explorer(LacosSentenceTransformer(tiny_bloom)).adapters == []


def test_a_port_that_is_taken_is_said_first(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port), "./no-such-model"]) == 2
    said = capsys.readouterr().err
    assert f"lacos-st demo: error: Port {port} cannot be had (Address already in use)" in said
    assert "--port" in said
    check_port(port)  # and is free again
    for nonsense in (0, -1, 65536):
        with pytest.raises(LacosError, match=f"--port {nonsense} is no port"):
            check_port(nonsense)


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["demo", "./no-such-model", "--port", "65000"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install 'lacos-st[demo]'")


def test_the_command_line_does_not_import_gradio():
    code = "import sys, lacos_st.cli, lacos_st.demo.page; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(explorer):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = build(explorer.model, "tiny <b>model</b>")
    yield serve(page, port, block=False)
    page.close(verbose=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_without_a_network_shows_it(address):
    """Every request is to the page's own address; what is typed is shown; a phone need not scroll sideways."""
    from playwright.sync_api import sync_playwright

    asked, said = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.set_default_timeout(240_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.wait_for_selector("table.matrix")
        assert page.inner_text("h1") == "tiny <b>model</b>"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        text_in = "getComputedStyle(document.querySelector('textarea')).fontFamily"
        assert page.evaluate(text_in).startswith("system-ui")

        hostile = "<script>document.title = 'taken'</script> ${1 + 1} {{value}}"
        page.get_by_label("Sentences, one a line").fill(f"{hostile}\nA man plays.")
        page.wait_for_function("document.querySelectorAll('table.neighbours tr').length === 2")
        assert hostile in page.inner_text("table.neighbours")
        assert page.title() == "tiny <b>model</b> · lacos-st"

        cell = "document.querySelectorAll('table.matrix td.cell')[1].textContent"
        before = page.evaluate(cell)
        page.get_by_label("the base alone").check()
        page.wait_for_function(f"{cell} !== '{before}'")
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert said == []


@pytest.mark.slow
def test_the_page_listens_on_this_machine_alone(address):
    from lacos_st.demo.page import HOST

    assert address.startswith(f"http://{HOST}:")
    port = int(address.rstrip("/").rpartition(":")[2])
    import psutil

    listening = {
        c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == port
    }
    assert listening == {HOST}
