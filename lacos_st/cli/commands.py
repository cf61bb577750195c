"""What each command does: a thin face of a typed function elsewhere, whose package it imports only when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lacos_st.cli.parser import RAY_FLAGS
from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError, listed
from lacos_st.files import check_directory, check_new_directory
from lacos_st.quiet import is_first


def _train(arguments: argparse.Namespace) -> None:
    from lacos_st.training.measure import described
    from lacos_st.training.processes import leave
    from lacos_st.training.train import train

    names = {item.name for item in fields(LacosConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    config = (
        LacosConfig.from_yaml(arguments.config, **given)
        if arguments.config is not None
        else LacosConfig.from_dict(given)
    )
    record = train(config).training_record
    leave()
    assert record is not None  # train() has just made it
    if not is_first():
        return
    if record["held_out"]["before"]:
        print(described(record["held_out"]))
    print(
        f"Saved {config.output}: {record['steps']} steps over {record['rows']} rows in {record['seconds']} s, best at "
        f"step {record['best_step']} (held-out loss {record['best_metric']:.4f}).\n"
        f'Use it: lacos_st.LacosSentenceTransformer("{config.output}"), or, slower but without lacos-st, '
        f'SentenceTransformer("{config.output}")'
    )


def _init(arguments: argparse.Namespace) -> None:
    from lacos_st.embedded.unpack import unpack

    directory = Path(arguments.directory or arguments.model)
    unpack(arguments.model, directory)
    print(f'Wrote {directory}. Use it: SentenceTransformer("{directory}")')


def _load(name: str) -> Any:
    from lacos_st.model.model import LacosSentenceTransformer

    return LacosSentenceTransformer(name)


def _encode(arguments: argparse.Namespace) -> None:
    names = ("output", "column", "id_column", "batch_size", "normalize", "prompt_name", "truncate_dim", "resume")
    options = {name: getattr(arguments, name) for name in names}
    of_ray = {name: value for name, value in vars(arguments).items() if f"--{name.replace('_', '-')}" in RAY_FLAGS}
    if arguments.engine == "ray":
        from lacos_st.encoding.ray_engine import encode_files

        if arguments.devices is not None:
            raise LacosError("--devices is for one process; Ray chooses: use --actors and --gpus-per-actor.")
        print(encode_files(arguments.model, arguments.input, precision=arguments.precision, **options, **of_ray))
        return
    from lacos_st.data.readers import open_file
    from lacos_st.encoding.encode import encode_file
    from lacos_st.encoding.source import choose

    if of_ray:
        raise LacosError(f"--{next(iter(of_ray)).replace('_', '-')} is for --engine ray, which was not asked for.")
    for what, values in (("inputs", arguments.input), ("precisions", arguments.precision)):
        if len(values) > 1:
            raise LacosError(f"{len(values)} {what} ({listed(values)}) in one command need --engine ray.")
    (path,) = arguments.input
    if Path(path).is_dir():
        raise LacosError(f"{path} is a directory, not a file: --engine ray encodes all files in it.")
    choose(open_file(path), arguments.column, arguments.id_column, wanted_ids=True)  # before the model is loaded
    print(
        encode_file(
            _load(arguments.model),
            path,
            precision=arguments.precision[0],
            devices=arguments.devices,
            **options,
        )
    )


def _similarity(arguments: argparse.Namespace) -> None:
    if len(arguments.texts) < 2:
        raise LacosError("similarity compares texts: give at least two.")
    model = _load(arguments.model)
    embeddings = model.encode(arguments.texts)
    for number, (text, row) in enumerate(
        zip(arguments.texts, model.similarity(embeddings, embeddings), strict=True), 1
    ):
        print(f"{number:>3}  {' '.join(f'{score:6.3f}' for score in row)}  {text}")


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.data_dir is not None:  # before mteb is imported, which takes seconds
        check_directory(arguments.data_dir, "--data-dir")
    from lacos_st.evaluation.evaluate import evaluate
    from lacos_st.evaluation.tables import text

    names = ("tasks", "languages", "data_dir", "split", "retrieval", "output", "batch_size")
    print(text(evaluate(arguments.models, **{name: getattr(arguments, name) for name in names})))
    if arguments.output:
        print(f"Wrote {arguments.output}. A page with figures: lacos-st report {arguments.output}")


def _report(arguments: argparse.Namespace) -> None:
    from lacos_st.evaluation.report import write_report

    for path in write_report(arguments.results, arguments.output, title=arguments.title, split=arguments.split):
        print(f"Wrote {path}")


def _check_overlap(arguments: argparse.Namespace) -> None:
    from lacos_st.evaluation.overlap import check_overlap

    print(check_overlap(arguments.train, arguments.data_dir, progress=True))


def _memory(arguments: argparse.Namespace) -> None:
    from lacos_st.decoder.memory import predict
    from lacos_st.model.names import base_config
    from lacos_st.training.assembly import memory_options

    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    base, file, revision = given.pop("base", None), given.pop("config", None), None
    options: dict[str, Any] = {}
    if file is not None:
        recipe = LacosConfig.from_yaml(file)
        options = memory_options(recipe, given.get("training", True))
        options["batch_size"] = recipe.mini_batch_size or recipe.batch_size
        base, revision = (recipe.base, recipe.revision) if base is None else (base, None)
    elif base is None:
        raise LacosError("Name a base, such as bigscience/bloom-560m, or a recipe: --config RECIPE.yaml.")
    print(predict(base_config(base, revision), **options | given).table())


def _demo(arguments: argparse.Namespace) -> None:
    from lacos_st.demo.page import build, check_port, import_gradio, serve

    check_port(arguments.port)
    import_gradio()  # what is missing is said before a model is loaded
    serve(build(_load(arguments.model), arguments.model), arguments.port)


def _merge(arguments: argparse.Namespace) -> None:
    output = arguments.output
    check_new_directory(output)
    model = _load(arguments.model)
    model.merge_adapter().save_pretrained(output)
    print(f"Wrote {output}: one 8-bit model without an adapter.")


def _trim(arguments: argparse.Namespace) -> None:
    from lacos_st.export.trim import check_sources, trim_vocabulary

    output = arguments.output
    check_new_directory(output)
    corpus, languages = arguments.corpus or [], arguments.languages or []
    check_sources(corpus, languages)
    model = _load(arguments.model)
    report = trim_vocabulary(model, corpus, languages)
    model.save_pretrained(output)
    print(f"{report}\nWrote {output}.")


def _export(arguments: argparse.Namespace) -> None:
    from lacos_st.export.export import export

    print(export(arguments.model, arguments.output, arguments.format))


def _info(arguments: argparse.Namespace) -> None:
    model = _load(arguments.model)
    for name, value in model.describe().items():
        print(f"{name:<16}{value}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "init": _init,
    "encode": _encode,
    "similarity": _similarity,
    "evaluate": _evaluate,
    "report": _report,
    "check-overlap": _check_overlap,
    "memory": _memory,
    "demo": _demo,
    "merge": _merge,
    "trim": _trim,
    "export": _export,
    "info": _info,
}
