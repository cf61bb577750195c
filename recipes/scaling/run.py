"""What LACoS gains with parameters, unlabelled and labelled data; and what each of its settings is worth.

Two tables, one cell at a time, each cell one file in `results/`; a cell that has its file is skipped, so the command
can be killed and repeated, and processes given different --seeds share the work.

* `grid`: every base of `language_model.py` (3 sizes x 3 amounts of text x 2 seeds), scored as it is and after 8-bit
  LoRA training on 200, 1,000 and all embedded NLI triplets. Every training has the same 100 steps of 32, so that more
  triplets mean more variety and not more computation: 3,200 are drawn, and 5,000 would be no different from all. The
  last step counts, nothing is chosen by its score. Scores are of test sets. One seed stands for a base's weights, its
  order of text, the draw of triplets and LACoS. Mean pooling, LoRA on all linear layers and its rate were chosen on
  development sets: such small models need more of an adapter than `LacosConfig`'s defaults give.
* `ablations`: LACoS on the largest of those bases with one setting changed at a time; scores are of development sets.

A score is Spearman's correlation x 100 of the cosine with the annotators. `score` embeds each distinct sentence of
all sets once and needs no MTEB; `lacos_st.evaluate` gives the same figures to 0.02.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from language_model import SIZES, Text, base_path, train_bases
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from lacos_st import LacosConfig, LacosSentenceTransformer, train
from lacos_st.embedded.names import sample_path
from lacos_st.evaluation.local_sets import read_pairs
from lacos_st.evaluation.statistics import spearman
from lacos_st.files import write_json

TEST = {
    "STS-B en": "stsb.en.test",
    "STS13 en": "sts13.en.test",
    "STS15 en": "sts15.en.test",
    "STS17 en-en": "sts17.en-en.test",
    "STS-B es": "stsb.es.test",
    "STS-B fr": "stsb.fr.test",
    "STS-B pt": "stsb.pt.test",
    "STS17 es-en": "sts17.es-en.test",
}
DEV = {
    "STS-B en": "stsb.en.dev",
    "SICK": "sick.en.trial",
    **{f"STS-B {lang}": f"stsb.{lang}.dev" for lang in ("es", "fr", "pt", "zh")},
}
ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
GRID_RATE, GRID_SCALE = 5e-3, 40.0
PROMPT_EOL = 'This sentence : "{text}" means in one word:"'
VARIANTS: dict[str, dict[str, Any]] = {  # what differs from the reference: the grid's settings
    "reference": {},
    "rank 4": {"lora_rank": 4, "lora_alpha": 8},
    "rank 64": {"lora_rank": 64, "lora_alpha": 128},
    "query_key_value alone": {"lora_targets": ALL_LINEAR[:1]},
    "pooling: weightedmean": {"pooling": "weightedmean"},
    "pooling: lasttoken": {"pooling": "lasttoken"},
    "PromptEOL template": {"template": PROMPT_EOL},
    "PromptEOL template, lasttoken": {"template": PROMPT_EOL, "pooling": "lasttoken"},
    "no hard negatives": {"columns": ["anchor", "positive"]},
    "duplicates not masked": {"mask_duplicates": False},
    "full precision": {"quantization": "none"},
}


@dataclass(frozen=True)
class Plan:
    """How much is run. Amounts of text are tokens, labelled amounts triplets (None: all)."""

    sizes: tuple[str, ...] = tuple(SIZES)
    amounts: tuple[int, ...] = (50_000, 250_000, 1_250_000)
    labelled: tuple[int | None, ...] = (200, 1_000, None)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 100
    vocabulary: int = 4096
    pairs: int | None = None


QUICK = Plan(tuple(SIZES)[:2], (20_000, 40_000), (200, None), (0,), 5, 1024, 100)


@dataclass(frozen=True)
class Cell:
    """One figure of a table: what is trained, and what it is scored on.

    Attributes:
        table: `grid` or `ablations`.
        name: Name of its file.
        base: Directory or name of the base.
        sets: Name -> file of an STS set.
        settings: Of `LacosConfig`; None scores the base as it is.
        facts: What the tables need to know of it.
    """

    table: str
    name: str
    base: str
    sets: dict[str, str]
    settings: dict[str, Any] | None
    facts: dict[str, Any] = field(default_factory=dict)


def settings(plan: Plan, triplets: Path, seed: int) -> dict[str, Any]:
    """Of the grid, and of the ablations' reference."""
    return {
        "pooling": "mean",
        "lora_targets": ALL_LINEAR,
        "learning_rate": GRID_RATE,
        "scale": GRID_SCALE,
        "batch_size": 32,
        "train_data": [str(triplets)],
        "eval_data": [str(sample_path("nli-dev"))],
        "max_steps": plan.steps,
        "seed": seed,
    }


def grid(plan: Plan, folder: Path, triplets: Path) -> Iterator[Cell]:
    """Cells of the grid: each base before LACoS, then all bases with an amount of triplets, then the next amount."""
    axes = list(product(plan.amounts, plan.sizes, plan.seeds))
    for labelled in ("base", *plan.labelled):
        for amount, size, seed in axes:
            base = base_path(folder, size, amount, seed)
            trained = None if labelled == "base" else {**settings(plan, triplets, seed), "max_rows": labelled}
            facts = {"size": size, "unlabelled": amount, "seed": seed}
            yield Cell("grid", f"grid-{base.name}-{labelled or 'all'}", str(base), TEST, trained, facts)


def ablations(plan: Plan, folder: Path, triplets: Path) -> Iterator[Cell]:
    """Cells of the ablations: the base before LACoS, and each variant, on the base of every seed."""
    for seed in plan.seeds:
        base = str(base_path(folder, plan.sizes[-1], plan.amounts[-1], seed))
        facts = {"variant": "before LACoS", "seed": seed}
        yield Cell("ablations", f"ablations-base-s{seed}", base, DEV, None, facts)
        for variant, changed in VARIANTS.items():
            name = f"ablations-{variant.replace(': ', '-').replace(', ', '-').replace(' ', '-')}-s{seed}"
            facts = {"variant": variant, "seed": seed}
            yield Cell("ablations", name, base, DEV, {**settings(plan, triplets, seed), **changed}, facts)


def score(model: SentenceTransformer, sts: Path, sets: dict[str, str], pairs: int | None = None) -> dict[str, float]:
    """Spearman x 100 by set, of all pairs or the first few."""
    rows = {name: list(read_pairs(sts / f"{file}.jsonl.gz"))[:pairs] for name, file in sets.items()}
    texts = sorted({text for part in rows.values() for row in part for text in row[:2]})
    place = {text: i for i, text in enumerate(texts)}
    table = model.encode(texts, batch_size=128, normalize_embeddings=True, show_progress_bar=False)
    scores = {}
    for name, part in rows.items():
        left, right = (table[[place[row[column]] for row in part]] for column in (0, 1))
        gold = np.array([row[2] for row in part])
        scores[name] = round(spearman(gold, (left * right).sum(1)), 2)
    return scores


def run(cell: Cell, output: Path, sts: Path, pairs: int | None) -> None:
    """Train and score one cell, and write its file."""
    began = time.monotonic()
    if cell.settings is None:
        model, trained = LacosSentenceTransformer(cell.base, pooling="mean"), {}
    else:
        directory = output / "models" / cell.name
        model = train(
            LacosConfig(
                base=cell.base,
                output=str(directory),
                overwrite=True,
                max_seq_length=64,
                eval_steps=cell.settings["max_steps"],  # once, at the end: nothing is chosen by it
                **cell.settings,
            )
        )
        record = json.loads((directory / "training.json").read_text())
        trained = {
            "triplets": record["rows"],
            "held_out_loss": round(record["best_metric"], 4),
            "trainable": record["trainable_parameters"],
        }
        shutil.rmtree(directory)
    scores = score(model, sts, cell.sets, pairs)
    learnt = Path(cell.base, "language_model.json")
    result = {
        "table": cell.table,
        **cell.facts,
        **trained,
        "base": json.loads(learnt.read_text()) if learnt.exists() else Path(cell.base).name,
        "steps": cell.settings and cell.settings["max_steps"],
        "scores": scores,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(output / "results" / f"{cell.name}.json", result)
    print(cell.name, f"{result['seconds']} s", scores, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stage", choices=["bases", "grid", "ablations"], help="grid and ablations train the bases they lack"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"), help="holds texts.parquet")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--output", type=Path, default=Path("work/scaling"))
    parser.add_argument("--triplets", type=Path, default=sample_path("nli-train"), help="labelled data")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Plan.seeds))
    parser.add_argument("--steps", type=int, help=f"of each LACoS training; default {Plan.steps}")
    parser.add_argument("--quick", action="store_true", help="a small grid that only shows that all works")
    args = parser.parse_args()
    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    plan = QUICK if args.quick else Plan(seeds=tuple(args.seeds))
    steps = args.steps or plan.steps
    plan = Plan(plan.sizes, plan.amounts, plan.labelled, plan.seeds, steps, plan.vocabulary, plan.pairs)
    (args.output / "results").mkdir(parents=True, exist_ok=True)
    bases = args.output / "bases"
    text = Text(args.work_dir)
    tokenizer = text.tokenizer(args.output / "tokenizer", plan.vocabulary)
    for seed in plan.seeds:
        for size in plan.sizes[-1:] if args.stage == "ablations" else plan.sizes:
            train_bases(text, tokenizer, bases, size, seed, plan.amounts)
    cells = {
        "bases": (),
        "grid": grid(plan, bases, args.triplets),
        "ablations": ablations(plan, bases, args.triplets),
    }
    for cell in cells[args.stage]:
        if not (args.output / "results" / f"{cell.name}.json").exists():
            run(cell, args.output, args.data_dir / "sts", plan.pairs)


if __name__ == "__main__":
    main()
