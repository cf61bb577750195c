"""What the site has beside the pages of docs/: files of the repository as pages, and the command line's reference.

mkdocs calls the functions whose names begin with `on_`, mkdocstrings the class.

Pages link to files of the repository as they lie on disk, so that links work where the files are read unbuilt. On the
site a link to a file that is no page becomes the file's path, since the repository has no public address to point to.
A link to a file that is not there stops the build.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in PAGES.items()}
    for page, text in (made | {"reference/cli.md": command_line()}).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = {source: page for page, source in PAGES.items()}.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is not None:
            return f"{picture}[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{source} links to {target}, which is not there.")
        return f"`{path}`" if text.strip("`") in (target, path) else f"{text} (`{path}`)"

    parts = _FENCE.split(markdown)  # every second one is a block of code
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


class Examples(griffe.Extension):
    """Docstrings of this package head a doctest with `Example:`, which griffe knows as `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)


def command_line() -> str:
    """The reference of the command line, from its parser."""
    from lacos_st.cli.parser import build_parser

    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(
        [
            "# Command line\n",
            f"{parser.description} A mistake of yours is one line and exit code 2; Ctrl-C is 130. `lacos-st COMMAND "
            "--help` says what stands here.\n",
            *(line for name, command in commands.choices.items() for line in _command(name, command)),
        ]
    )


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{str(command.description)[:1].upper()}{str(command.description)[1:]}.\n"
    positional = [action for action in command._actions if not action.option_strings]
    required = [action for action in command._actions if action.option_strings and action.required]
    words = [*map(_value, positional), *(f"{action.option_strings[0]} {_value(action)}" for action in required)]
    yield f"```text\nlacos-st {' '.join([name, *words])} [options]\n```\n"
    yield "| option | what it does |\n| --- | --- |"
    formatter = command.formatter_class(prog=command.prog)
    for action in command._actions:
        if not isinstance(action, argparse._HelpAction):
            value = f" {_value(action)}" if action.option_strings and action.nargs != 0 and _value(action) else ""
            names = action.option_strings or [_value(action)]
            named = ", ".join(f"`{name}{value if name == names[-1] else ''}`" for name in names)
            told = (formatter._expand_help(action) if action.help else "").removesuffix(" (default: None)")
            chosen = f"One of {', '.join(map(str, action.choices))}. " if action.choices else ""
            yield f"| {named} | {_cell(f'{chosen}{told[:1].upper()}{told[1:]}')} |"
    yield ""


def _value(action: argparse.Action) -> str:
    if action.choices or isinstance(action, argparse.BooleanOptionalAction):
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return f"{name} ..." if action.nargs in ("+", "*") else f"[{name}]" if action.nargs == "?" else str(name)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")
