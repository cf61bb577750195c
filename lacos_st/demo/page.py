"""`lacos-st demo`: a page on this machine, for this machine's user, made with Gradio.

It listens on 127.0.0.1 alone, sends nothing anywhere and fetches nothing: Gradio's reports of use and its look for a
newer version are off, and its fonts, by default from a font server, are the system's. What is shown is worked out in
`views`; here are the fields, and which adapter is active while one page's sentences are encoded.
"""

from __future__ import annotations

import os
import socket
from html import escape
from threading import Lock
from typing import TYPE_CHECKING, Any

from lacos_st.demo.views import CSS, cosines, map_html, matrix_html, neighbours_html, read_sentences
from lacos_st.errors import LacosError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

HOST = "127.0.0.1"
BASE_ALONE = ""  # an adapter's name is never empty
SENTENCES = """A man is playing the guitar on stage.
Un hombre toca la guitarra.
Un homme joue de la musique.
Two dogs are running through the snow.
Deux chiens courent dans la neige.
孩子们在公园里踢足球。
Children are playing football in the park.
Os alunos jogam futebol no parque.
El tren a Madrid sale a las ocho.
The train to Paris leaves at nine."""
QUERY = "Someone is making music"


class Explorer:
    """A model, and the pictures of a page's sentences.

    Several windows may be open at once, each with its own adapter: a lock keeps one window's adapter active until its
    sentences are encoded.

    Args:
        model: Any sentence-transformers model; adapters are those of its first module.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model
        self.adapters: list[str] = list(getattr(model[0], "adapter_names", []))
        self._lock = Lock()

    def show(self, text: str, query: str, adapter: str | None = None) -> tuple[str, str, str]:
        """The three pictures.

        Args:
            text: Sentences, one a line.
            query: A sentence that the others are compared with; may be blank.
            adapter: Which of `adapters` to encode with, or `BASE_ALONE`. Default: as the model is.

        Returns:
            HTML of the neighbours, the matrix and the map; empty where there is nothing to show.

        Raises:
            LacosError: Too many sentences, or no such adapter.
        """
        sentences, query = read_sentences(text), query.strip()
        if not sentences:
            return "<div class=lacos><p class=note>Write some sentences, one a line.</p></div>", "", ""
        with self._lock:
            self._use(adapter)
            embeddings = self.model.encode_document(sentences)
            asked = self.model.encode_query([query]) if query else None
        near = "<div class=lacos><p class=note>Ask for something, and the sentences are sorted by nearness.</p></div>"
        if asked is not None:
            near = neighbours_html(sentences, cosines(asked, embeddings)[0])
        drawn = map_html(sentences, embeddings, None if asked is None else asked[0])
        return near, matrix_html(sentences, cosines(embeddings, embeddings)), drawn

    def _use(self, adapter: str | None) -> None:
        if adapter is None or not self.adapters:
            return
        if adapter == BASE_ALONE:
            self.model.disable_adapters()
            return
        if adapter not in self.adapters:
            raise LacosError(f"There is no adapter {adapter!r}: the model has {', '.join(self.adapters)}.")
        self.model.enable_adapters()
        self.model.set_adapter(adapter)


def check_port(port: int) -> None:
    """Look whether a port is free, before a model is loaded.

    Args:
        port: 1 to 65535.

    Raises:
        LacosError: It is none, or another program has it.
    """
    if not 1 <= port <= 65535:
        raise LacosError(f"--port {port} is no port: choose a number from 1024 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port closed just now is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise LacosError(
                f"Port {port} cannot be had ({error.strerror}): another program may listen there. Choose another: "
                f"--port {port + 1 if port < 65535 else port - 1}."
            ) from error


def import_gradio() -> Any:
    """Gradio, told to send no reports.

    Raises:
        LacosError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported, too
    try:
        import gradio
    except ModuleNotFoundError as missing:
        raise LacosError(
            f"The page needs {missing.name}, which is not installed: pip install 'lacos-st[demo]'"
        ) from missing
    return gradio


def build(model: SentenceTransformer, name: str) -> Any:
    """The page, not yet served.

    Args:
        model: Any sentence-transformers model.
        name: What to call it in the heading.

    Returns:
        `gradio.Blocks`.

    Raises:
        LacosError: Gradio is not installed.
    """
    gr = import_gradio()
    explorer = Explorer(model)
    framed: dict[str, Any] = {"container": True, "show_label": True, "padding": True}

    def show(*fields: Any) -> tuple[str, str, str]:
        try:
            return explorer.show(*fields)
        except LacosError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    with gr.Blocks(analytics_enabled=False, title=f"{name} · lacos-st") as page:
        gr.HTML(f"<h1>{escape(name)}</h1>")
        with gr.Row():
            with gr.Column(scale=2):
                sentences = gr.Textbox(
                    SENTENCES, label="Sentences, one a line, in any language", lines=12, max_lines=24
                )
            with gr.Column(scale=3):
                query = gr.Textbox(QUERY, label="What is near to this?", lines=1)
                fields = [sentences, query]
                if explorer.adapters:
                    choices = [*((each, each) for each in explorer.adapters), ("the base alone", BASE_ALONE)]
                    fields.append(gr.Radio(choices, value=explorer.adapters[0], label="Adapter"))
                near = gr.HTML(label="Neighbours", **framed)
        matrix = gr.HTML(label="Cosine of each sentence with each", **framed)
        drawn = gr.HTML(label="Map", **framed)
        gr.on(
            [page.load, *(field.change for field in fields)],
            show,
            fields,
            [near, matrix, drawn],
            show_progress="hidden",
            trigger_mode="always_last",  # while one answer is made, only what was written last waits for the next
        )
    return page


def serve(page: Any, port: int, block: bool = True) -> str:
    """Serve the page until Ctrl-C.

    Args:
        page: What `build` made.
        port: On which port of 127.0.0.1.
        block: Return only when the server has stopped.

    Returns:
        The page's address.
    """
    gr = import_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, url, _ = page.launch(
        server_name=HOST, server_port=port, share=False, ssr_mode=False, mcp_server=False, inbrowser=False, quiet=True,
        prevent_thread_lock=True, footer_links=[], theme=gr.themes.Default(**fonts), css=CSS,
    )  # fmt: skip
    print(f"The page is at {url} (this machine only). Ctrl-C ends it.", flush=True)
    if block:
        page.block_thread()
    return str(url)
