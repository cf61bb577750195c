"""The tables and figures of `run.py`'s results.

Writes, beside each other: `scaling.json` (all cells), `scaling.md` (tables), `scaling.png` and `.svg` (score against
each axis), `scaling-ablations.png` and `.svg`. A figure is the mean over seeds, its spread half the distance between
the lowest and the highest; error bars span them. What a step along one axis gives is a mean of differences between
cells that agree in everything else, the seed included; its standard error takes those pairs for independent, which
they are not quite (cells share bases), so it is a lower bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lacos_st.files import atomic, write_json

Cell = dict[str, Any]
GROUPS = {
    "English": ("STS-B en", "STS13 en", "STS15 en", "STS17 en-en"),
    "es, fr, pt": ("STS-B es", "STS-B fr", "STS-B pt"),
    "es-en": ("STS17 es-en",),
}
COLOURS = ("#9ecae1", "#4292c6", "#08306b")  # an order, light to dark
BEFORE = "before LACoS"


def group_score(cell: Cell, group: str) -> float:
    """Mean over the sets of a group."""
    return float(np.mean([cell["scores"][name] for name in GROUPS[group]]))


def spread(values: Sequence[float]) -> str:
    """Mean and half the range over seeds; a lone value has no spread."""
    if not values:
        return ""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {np.ptp(values) / 2:.1f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tokens(number: int) -> str:
    """500,000 as 0.5 M."""
    return f"{number / 1e6:g} M"


class Grid:
    """The grid's cells by their three axes.

    Args:
        cells: Results of the table `grid`.
    """

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = {(c["size"], c["unlabelled"], labelled(c), c["seed"]): c for c in cells}
        parameters = {c["size"]: c["base"]["parameters"] for c in cells}
        self.sizes = sorted(parameters, key=parameters.__getitem__)
        self.names = {size: f"{size}, {parameters[size] / 1e6:.1f} M" for size in self.sizes}
        self.amounts = sorted({c["unlabelled"] for c in cells})
        self.labelled = sorted({labelled(c) for c in cells})
        self.seeds = sorted({c["seed"] for c in cells})

    def scores(self, size: str, amount: int, triplets: int, group: str) -> list[float]:
        """One value a seed that has this cell."""
        found = [self.cells.get((size, amount, triplets, seed)) for seed in self.seeds]
        return [group_score(cell, group) for cell in found if cell]

    def level(self, triplets: int) -> str:
        """Heading of an amount of triplets."""
        return BEFORE if triplets == 0 else f"{triplets:,}"

    def markdown(self) -> str:
        """A table a group, what each step gives, and the language models' own loss."""
        parts = []
        for group, sets in GROUPS.items():
            head = ["base", "text, tokens", *(f"{self.level(n)}{' triplets' if n else ''}" for n in self.labelled)]
            rows = [
                [
                    self.names[size],
                    tokens(amount),
                    *(spread(self.scores(size, amount, n, group)) for n in self.labelled),
                ]
                for size in self.sizes
                for amount in self.amounts
            ]
            parts.append(f"## {group}: {', '.join(sets)}\n\n{table(head, rows)}")
        parts.append(
            "## What a step along one axis gives, all else equal\n\nMean difference ± standard error (pairs that rose "
            f"/ pairs).\n\n{self.steps()}"
        )
        rows = [
            [self.names[size], *(spread(self.losses(size, amount)) for amount in self.amounts)] for size in self.sizes
        ]
        parts.append(
            "## Held-out loss of the language models, in bits a token\n\n"
            + table(["base", *map(tokens, self.amounts)], rows)
        )
        return "\n".join(parts)

    def losses(self, size: str, amount: int) -> list[float]:
        """Bits a token of a base, one value a seed."""
        found = [self.cells.get((size, amount, 0, seed)) for seed in self.seeds]
        return [c["base"]["held_out_loss"] / np.log(2) for c in found if c]

    def steps(self) -> str:
        """Differences between neighbouring levels of each axis, over all other levels and seeds."""
        axes: list[tuple[int, list[Any], Callable[[Any], str]]] = [
            (0, self.sizes, self.names.__getitem__),
            (1, self.amounts, lambda n: f"{tokens(n)} tokens"),
            (2, self.labelled, lambda n: f"{n:,} triplets" if n else BEFORE),
        ]
        rows = []
        for axis, levels, name in axes:
            for low, high in pairwise(levels):
                row = [f"{name(low)} → {name(high)}"]
                for group in GROUPS:
                    gains = []
                    for key, cell in self.cells.items():
                        other = self.cells.get((*key[:axis], high, *key[axis + 1 :]))
                        # untrained bases count on the axis of triplets only
                        if key[axis] == low and other and (axis == 2 or key[2]):
                            gains.append(group_score(other, group) - group_score(cell, group))
                    if not gains:
                        row.append("")
                        continue
                    error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
                    row.append(f"{np.mean(gains):+.1f} ± {error:.1f} ({sum(g > 0 for g in gains)}/{len(gains)})")
                rows.append(row)
        return table(["step", *GROUPS], rows)

    def figure(self) -> Figure:
        """Two groups x three axes; the axes that a panel does not show are at their largest."""
        most, full = self.amounts[-1], self.labelled[-1]
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        grid = figure.subplots(2, 3, sharey="row")
        for row, group in zip(grid, list(GROUPS)[:2], strict=True):
            for i, amount in enumerate(self.amounts):
                points = [self.scores(size, amount, full, group) for size in self.sizes]
                curve(row[0], points, i, f"{tokens(amount)} tokens")
            for i, size in enumerate(self.sizes):
                points = [self.scores(size, amount, full, group) for amount in self.amounts]
                curve(row[1], points, i, self.names[size])
                points = [self.scores(size, amount, 0, group) for amount in self.amounts]
                curve(row[1], points, i, None, "--")
                points = [self.scores(size, most, n, group) for n in self.labelled]
                curve(row[2], points, i, self.names[size])
            row[0].set_ylabel(f"Spearman × 100, mean of {group}")
        for column, (labels, title) in enumerate(
            [
                ([self.names[s].split(", ")[1] for s in self.sizes], f"parameters ({full:,} triplets)"),
                ([tokens(n) for n in self.amounts], f"tokens of text (dashed: {BEFORE})"),
                ([f"{n:,}" if n else "before" for n in self.labelled], f"triplets ({tokens(most)} tokens of text)"),
            ]
        ):
            for axes in grid[:, column]:
                axes.set_xticks(range(len(labels)), labels)
                axes.margins(x=0.12)
            grid[1, column].set_xlabel(title)
            grid[0, column].legend(
                fontsize=8,
                frameon=False,
                ncols=3,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                handlelength=1.2,
                columnspacing=0.8,
            )
        return figure


def labelled(cell: Cell) -> int:
    """Triplets that LACoS could draw from; 0 before it."""
    return int(cell.get("triplets", 0))


def curve(axes: Axes, points: list[list[float]], order: int, label: str | None, style: str = "-") -> None:
    """Means with bars from the lowest seed to the highest, evenly spaced; curve `order` stands a little aside."""
    there = [(i + 0.05 * (order - 1), values) for i, values in enumerate(points) if values]
    x, mean = [place for place, _ in there], np.array([np.mean(values) for _, values in there])
    low, high = (np.array([end(values) for _, values in there]) for end in (min, max))
    axes.errorbar(
        x, mean, [mean - low, high - mean], fmt=f"o{style}", ms=4, lw=1.4, capsize=3, color=COLOURS[order], label=label
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", lw=0.3)


def ablation_rows(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Variant -> one cell a seed, in the order of the first seed's run."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell["variant"], []).append(cell)
    return rows


def ablation_markdown(cells: list[Cell]) -> str:
    """A row a variant: each set, their mean, and the mean's difference from the reference, seed by seed."""
    rows = ablation_rows(cells)
    reference = {c["seed"]: mean_score(c) for c in rows["reference"]}
    lines = []
    for variant, found in rows.items():
        gains = [mean_score(c) - reference[c["seed"]] for c in found if c["seed"] in reference]
        per_set = [spread([c["scores"][name] for c in found]) for name in found[0]["scores"]]
        change = "" if variant == "reference" else f"{np.mean(gains):+.1f} ({', '.join(f'{g:+.1f}' for g in gains)})"
        lines.append([variant, *per_set, spread([mean_score(c) for c in found]), change])
    return table(["variant", *cells[0]["scores"], "mean", "to the reference (each seed)"], lines)


def mean_score(cell: Cell) -> float:
    return float(np.mean(list(cell["scores"].values())))


def ablation_figure(cells: list[Cell]) -> Figure:
    """Each variant's difference from the reference of the same seed: mean of the sets, STS-B en, SICK."""
    rows = ablation_rows(cells)
    measures: dict[str, Callable[[Cell], float]] = {
        "mean of all sets": mean_score,
        "STS-B en": lambda c: c["scores"]["STS-B en"],
        "SICK": lambda c: c["scores"]["SICK"],
    }
    reference = {c["seed"]: c for c in rows["reference"]}
    variants = [v for v in rows if v != "reference"][::-1]
    figure = Figure(figsize=(10, 0.8 + 0.36 * len(variants)), layout="constrained")
    for axes, (title, measure) in zip(figure.subplots(1, 3, sharey=True), measures.items(), strict=True):
        axes.axvline(0, color="#50575e", lw=1)
        for y, variant in enumerate(variants):
            gains = [measure(c) - measure(reference[c["seed"]]) for c in rows[variant] if c["seed"] in reference]
            axes.plot([min(gains), max(gains)], [y, y], color=COLOURS[1], lw=2)
            axes.plot(gains, [y] * len(gains), "o", ms=5, color=COLOURS[2])
        axes.set_yticks(range(len(variants)), variants)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("difference from the reference, points", fontsize=8)
        axes.grid(axis="x", lw=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    for kind in ("png", "svg"):
        with atomic(path.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/scaling"), help="as given to run.py")
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[2] / "docs/benchmarks")
    args = parser.parse_args()
    files = sorted((args.output / "results").glob("*.json"), key=lambda path: path.stat().st_mtime)
    cells: list[Cell] = [json.loads(path.read_text()) for path in files]
    by_table = {name: [c for c in cells if c["table"] == name] for name in ("grid", "ablations")}
    args.to.mkdir(parents=True, exist_ok=True)
    write_json(args.to / "scaling.json", cells)
    text = "# Scaling and ablations\n\nSpearman × 100, mean over seeds ± half their range; see `recipes/scaling/`.\n\n"
    if by_table["grid"]:
        grid = Grid(by_table["grid"])
        text += grid.markdown()
        save(grid.figure(), args.to / "scaling")
    if by_table["ablations"]:
        text += "\n## Ablations on the largest base with the most text, development sets\n\n" + ablation_markdown(
            by_table["ablations"]
        )
        save(ablation_figure(by_table["ablations"]), args.to / "scaling-ablations")
    with atomic(args.to / "scaling.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
