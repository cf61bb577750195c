"""Draw which package imports which, from the imports themselves: `python docs/house.py` writes `docs/house.svg`."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
# from top to bottom, as data flows; import-linter holds the order (pyproject.toml)
FLOORS = [
    ["cli"],
    ["training", "encoding", "evaluation", "export", "demo"],
    ["data", "model"],
    ["decoder", "embedded"],
]
COMMON = "errors, files, config, quiet"  # everyone may import these: no arrows


def arrows() -> Counter[tuple[str, str]]:
    """(importing package, imported package) -> number of import statements."""
    found: Counter[tuple[str, str]] = Counter()
    known = {name for floor in FLOORS for name in floor}
    for path in sorted((ROOT / "lacos_st").rglob("*.py")):
        here = path.relative_to(ROOT / "lacos_st").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lacos_st."):
                there = str(node.module).split(".")[1]
                if here in known and there in known and here != there:
                    found[here, there] += 1
    return found


def files(package: str) -> str:
    """How much is in a package."""
    folder = ROOT / "lacos_st" / package
    paths = list(folder.glob("*.py")) if folder.is_dir() else [ROOT / "lacos_st" / f"{package}.py"]
    paths = [path for path in paths if path.name != "__init__.py"]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    return f"{len(paths)} file{'s' * (len(paths) > 1)}, {lines:,} lines"


def main() -> None:
    """Write the picture."""
    packages = {path.parent.name for path in (ROOT / "lacos_st").glob("*/__init__.py")} - {"former"}
    if missing := packages - set().union(*FLOORS):
        raise SystemExit(f"Write into FLOORS where these packages lie: {', '.join(sorted(missing))}")
    place = {
        name: ((i + 0.5) * 14 / len(floor), -2 * level)
        for level, floor in enumerate(FLOORS)
        for i, name in enumerate(floor)
    }
    figure, axes = plt.subplots(figsize=(10.5, 6.5))
    for (here, there), count in sorted(arrows().items()):
        (x0, y0), (x1, y1) = place[here], place[there]
        style = {"arrowstyle": "-|>", "color": "#607080", "lw": 0.6 + 0.15 * min(count, 12), "shrinkB": 2}
        axes.annotate("", (x1, y1 + 0.42), (x0, y0 - 0.42), arrowprops=style)
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.5", "fc": "#eef3f8", "ec": "#34506c"}
        axes.text(x, y, f"{name}\n{files(name)}", ha="center", va="center", bbox=box, fontsize=9)
    axes.text(7, -7.6, f"everyone may import: {COMMON}", ha="center", fontsize=9, color="#34506c")
    axes.set(xlim=(0, 14), ylim=(-8.2, 0.9))
    axes.axis("off")
    plt.rcParams["svg.hashsalt"] = "lacos-st"  # the same bytes at every run
    figure.savefig(ROOT / "docs" / "house.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
