"""What can be said on the command line: the commands and their options.

`train`'s flags are `LacosConfig`'s fields, so that a further setting is written once. What is absent stays absent
where a recipe or a function has the default.
"""

from __future__ import annotations

import argparse
import itertools
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

from lacos_st.config import LacosConfig

_EPILOG = """examples:
  lacos-st train                                             the embedded base on the embedded sample, offline
  lacos-st train --base bigscience/bloom-560m --train-data sentence-transformers/all-nli:triplet --output my-model
  lacos-st evaluate bloom-mini lacos-bloom --tasks sts-sample
  lacos-st encode lacos-bloom texts.txt --output texts.npy
  lacos-st encode lacos-bloom corpus/ --engine ray --actors 4 --output embeddings
  lacos-st similarity lacos-bloom "A man plays guitar." "Un homme joue de la guitare."
"""

PATHS = {
    "base",
    "config",
    "corpus",
    "data_dir",
    "directory",
    "input",
    "model",
    "models",
    "output",
    "ranges",
    "results",
    "retrieval",
    "train",
}

_DEFAULTS = LacosConfig()
_PRECISIONS = ["float32", "float16", "int8", "uint8", "binary", "ubinary"]
_OF_RAY: list[tuple[str, Callable[[str], Any], str, str]] = [
    ("--address", str, "ADDRESS", "a cluster, or auto for this machine's; without it Ray runs on this machine alone"),
    ("--actors", int, "N", "processes that hold the model; without it one for each GPU, else for each machine"),
    ("--gpus-per-actor", float, "G", "GPUs of an actor, 0.5 for half of one; without it 1 where there are GPUs"),
    ("--ranges", str, "RANGES.npy", "what int8 is scaled by, from an earlier run; without it taken from a sample"),
]
RAY_FLAGS = {flag for flag, *_ in _OF_RAY}


class _Command(argparse.ArgumentParser):
    """The parser of one command: no abbreviations, and an unknown option is told which known ones are near."""

    def __init__(self, **options: Any) -> None:
        self.flags: list[str] = []
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        self.flags += action.option_strings
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # before argparse, which would first ask for what a misspelt option should have given
        for token in itertools.takewhile(lambda token: token != "--", args):
            name = token.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self.flags:
                self.error(f"there is no option {name}.{self._near(name)}")
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}.")
        return namespace, rest

    def _near(self, name: str) -> str:
        plain = name.replace("_", "-").lower()
        near = [f for f in self.flags if f.startswith(plain) or _initials(f) == plain.strip("-")]
        near = near[:3] or get_close_matches(plain, self.flags, 1)
        return f" Did you mean {' or '.join(near)}?" if near else ""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end} All options: {self.prog} --help\n")


def _initials(flag: str) -> str:
    return "".join(word[:1] for word in flag.strip("-").split("-"))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        prog="lacos-st",
        description="8-bit LoRA sentence embeddings from BLOOM and other decoders: train, encode, evaluate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from lacos_st import __version__

    parser.add_argument("--version", action="version", version=f"lacos-st {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    train = add("train", "train an adapter and save the model; run again to go on after an interruption")
    train.add_argument("--config", metavar="RECIPE.yaml", help="a recipe; flags win over it")
    _add_recipe_flags(train)

    init = add("init", "write an embedded model as a directory that stock sentence-transformers loads")
    init.add_argument("directory", nargs="?", help="default: the model's name")
    init.add_argument("--model", default="lacos-bloom", help="lacos-bloom, or bloom-mini, its base")

    encode = add("encode", "encode files of texts; run again to go on after an interruption")
    encode.add_argument("model")
    encode.add_argument(
        "input",
        nargs="+",
        help=".txt (a line is a text), .csv, .tsv, .jsonl (each also .gz), .parquet; a blank text becomes zeros; "
        "several, or directories, with --engine ray",
    )
    encode.add_argument("--output", required=True, metavar="OUT.npy|OUT.parquet|DIR",
                        help="where the embeddings go; with --engine ray a directory of Parquet files")  # fmt: skip
    encode.add_argument("--column", help="column of texts; default: the only one, or text, sentence, line")
    encode.add_argument("--id-column", help="column of ids, kept in Parquet output")
    encode.add_argument("--batch-size", type=int, default=32, help="texts in a forward pass")
    encode.set_defaults(precision=["float32"])
    encode.add_argument("--precision", default=argparse.SUPPRESS, nargs="+", metavar="PRECISION", choices=_PRECISIONS,
                        help=f"{', '.join(_PRECISIONS)} (default: float32); several with --engine ray")  # fmt: skip
    encode.add_argument("--normalize", action="store_true", help="scale embeddings to length 1")
    encode.add_argument("--prompt-name", help="one of the model's prompts")
    encode.add_argument("--truncate-dim", type=int, help="keep the first dimensions only")
    encode.add_argument("--devices", nargs="+", help="devices, for example cuda:0 cuda:1")
    encode.add_argument("--engine", default="local", choices=["local", "ray"],
                        help="local: one file, this process; ray: many files, many processes or machines")  # fmt: skip
    for flag, kind, name, what in _OF_RAY:
        encode.add_argument(flag, type=kind, metavar=name, default=argparse.SUPPRESS, help=f"of --engine ray: {what}")
    encode.set_defaults(resume=True)
    encode.add_argument("--no-resume", dest="resume", action="store_const", const=False, default=argparse.SUPPRESS,
                        help="start over")  # fmt: skip

    similarity = add("similarity", "print the similarity of texts")
    similarity.add_argument("model")
    similarity.add_argument("texts", nargs="+", metavar="TEXT")

    evaluate = add("evaluate", "measure models on similarity and retrieval with MTEB, online or from files")
    evaluate.add_argument("models", nargs="+", metavar="MODEL")
    evaluate.add_argument(
        "--tasks", nargs="+", help="sts-english, sts-multilingual, sts-sample, nanobeir, or MTEB task names"
    )
    evaluate.add_argument("--languages", nargs="+", help="language codes; a set is kept if all its languages are")
    evaluate.add_argument("--data-dir", help="directory of <dataset>.<language>.<split>.jsonl[.gz] files")
    evaluate.add_argument("--retrieval", nargs="+", metavar="FILE", default=[], help="pairs or triplets to search in")
    evaluate.add_argument("--split", default="test", choices=["test", "dev"], help="which files of --data-dir")
    evaluate.add_argument("--output", help="directory for results; a second run goes on where the first stopped")
    evaluate.add_argument("--batch-size", type=int, default=32, help="sentences in a batch")

    report = add("report", "turn results of evaluate into a self-contained page")
    report.add_argument("results", nargs="+", metavar="RESULTS")
    report.add_argument("-o", "--output", default="report.html", help="the page; plots go beside it")
    report.add_argument("--title", default="Evaluation", help="heading of the page")
    report.add_argument("--split", choices=["test", "dev"], help="results to show; default: test, where there are any")

    overlap = add("check-overlap", "count evaluation texts that occur in training data")
    overlap.add_argument("train", nargs="+", metavar="TRAIN")
    overlap.add_argument("--data-dir", help="evaluation files; default: the embedded STS sample")

    memory = add("memory", "predict the peak memory of a run, before it runs")
    memory.argument_default = argparse.SUPPRESS  # what is not given is the recipe's, else `predict`'s own
    memory.add_argument(
        "base",
        nargs="?",
        help="a decoder, for example bigscience/bloom-7b1 or a local directory; no weights are downloaded",
    )
    memory.add_argument("--config", metavar="RECIPE.yaml", help="a recipe of `train`; base and options win over it")
    memory.add_argument("--encode", dest="training", action="store_const", const=False, help="encoding, not training")
    memory.add_argument("--batch-size", type=int, help="rows in a batch (default: 64)")
    memory.add_argument("--length", type=int, help="mean tokens of a text (default: 32; of a recipe: all it allows)")
    memory.add_argument("--texts", type=int, help="texts in a row: 2 for pairs, 3 for triplets (default: 2)")
    memory.add_argument("--rank", type=int, help="LoRA's rank (default: 16)")
    memory.add_argument("--targets", nargs="+", help="layers with an adapter (default: all-linear)")
    optimizers = ["adamw_8bit", "paged_adamw_8bit", "adamw_torch"]
    memory.add_argument("--optimizer", choices=optimizers, help="default: adamw_8bit")
    memory.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, help="recompute activations (default: no)"
    )
    memory.add_argument("--quantization", choices=["int8", "none"], help="default: int8")
    memory.add_argument("--device", choices=["cpu", "cuda"], help="where it would run (default: cpu)")

    demo = add("demo", "open a page on this machine: neighbours, similarities, a map, adapters switched")
    demo.add_argument("model", nargs="?", default="lacos-bloom", help="a directory, an embedded model or a Hub name")
    demo.add_argument("--port", type=int, default=7860, help="port of 127.0.0.1, where the page is")

    merge = add("merge", "fold the adapter into the base (in float, then 8 bits again)")
    merge.add_argument("model")
    merge.add_argument("output", metavar="OUT")

    trim = add("trim", "keep the tokens that your texts or languages use: a smaller model, the same embeddings")
    trim.add_argument("model")
    trim.add_argument("output", metavar="OUT")
    trim.add_argument(
        "--corpus", nargs="+", metavar="FILE",
        help=".txt, .csv, .tsv, .jsonl (each also .gz), .parquet: the tokens of every text in every column stay",
    )  # fmt: skip
    trim.add_argument(
        "--languages", nargs="+", metavar="CODE",
        help="for example en fr ar: every token stays that a text in their scripts can have, in any language of these",
    )  # fmt: skip

    export = add("export", "write a model for other software: one 16-bit checkpoint, the adapter folded in")
    export.add_argument("model")
    export.add_argument("output", metavar="OUT", help="a directory; for gguf a file that ends in .gguf")
    export.add_argument(
        "--format", default="hf", choices=["hf", "gguf", "onnx", "openvino"],
        help="hf: transformers' and sentence-transformers' layout; gguf: llama.cpp; onnx, openvino: as hf, and the "
        "commands that convert it",
    )  # fmt: skip

    info = add("info", "say what a model is made of")
    info.add_argument("model")
    return parser


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `LacosConfig`; absent flags leave the recipe's or the default value."""
    hints = typing.get_type_hints(LacosConfig)
    for item in fields(LacosConfig):
        kind = hints[item.name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(option for option in typing.get_args(kind) if option is not type(None))
        default = getattr(_DEFAULTS, item.name)
        told = item.metadata["help"] + ("" if default in (None, []) else f" (default: {default})")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": told.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is Literal:
            options["choices"] = typing.get_args(kind)
        elif typing.get_origin(kind) is list:
            options |= {"nargs": "+", "metavar": item.name.upper()}
        else:
            options["metavar"] = kind.__name__.upper()  # LacosConfig itself turns texts into numbers
        parser.add_argument(f"--{item.name.replace('_', '-')}", dest=item.name, **options)
