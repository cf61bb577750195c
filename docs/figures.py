"""Draw the figures of README and of `how-it-works.md`: `python docs/figures.py` writes `docs/figures/*.svg`."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from lacos_st import LacosSentenceTransformer
from lacos_st.decoder.attention import alibi_slopes

FOLDER = Path(__file__).with_name("figures")
BLUE, MIDDLE, PALE, GREY, ORANGE = "#34506c", "#6a95be", "#b9d0e6", "#e4e7ea", "#c25a1c"
BENCHMARK = {
    "en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "zh": "Chinese",
}  # fmt: skip
ACROSS = {"es-en": "Spanish – English", "en-ar": "English – Arabic", "en-tr": "English – Turkish"}


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure, the same bytes at every run."""
    figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def packing() -> None:
    """Four texts, as a padded batch and packed."""
    texts = {
        "It rains .": "#dce8f3",
        "A man plays the guitar .": PALE,
        "Hello !": "#8fb3d4",
        "Two dogs run .": MIDDLE,
    }
    words = {text: text.split() for text in texts}
    longest = max(map(len, words.values()))
    figure, axes = plt.subplots(figsize=(5, 2.6))
    for row, (text, colour) in enumerate(texts.items()):
        for column in range(longest):
            real = column < len(words[text])
            axes.add_patch(plt.Rectangle((column, -row), 0.94, 0.9, fc=colour if real else GREY))
            told, ink = (words[text][column], "black") if real else ("pad", "#7a8087")
            axes.text(column + 0.47, 0.45 - row, told, ha="center", va="center", fontsize=9, color=ink)
    place = 0.0
    for text in sorted(texts, key=lambda text: len(words[text])):
        for _ in words[text]:
            axes.add_patch(plt.Rectangle((place, -4.9), 0.36, 0.9, fc=texts[text]))
            place += 0.4
    axes.text(6.2, -1, f"padded:\n{len(texts) * longest} tokens", va="center", color=BLUE)
    axes.text(6.2, -4.4, f"packed:\n{sum(map(len, words.values()))} tokens", va="center", color=BLUE)
    axes.set(xlim=(0, 8), ylim=(-5, 1))
    axes.axis("off")
    save(figure, "packing")


def alibi() -> None:
    """What ALiBi adds to a score, by query and key, in the three modes."""
    slope, place = alibi_slopes(8)[1], torch.arange(12.0)  # of the second head of eight
    distance = place[None, :] - place[:, None]
    biases = {
        "causal": (slope * distance).masked_fill(distance > 0, torch.nan),
        "bidirectional": (slope * (place - place[-1])).expand(12, 12),  # softmax does not see what a row shares
        "symmetric": -slope * distance.abs(),
    }
    figure, panels = plt.subplots(1, 3, figsize=(6, 2.3))
    for axes, (mode, bias) in zip(panels, biases.items(), strict=True):
        axes.imshow(bias, cmap="Blues_r", vmin=-5, vmax=1)
        axes.set(title=mode, xlabel="key j", xticks=[0, 11], yticks=[])
    panels[0].set(ylabel="query i", yticks=[0, 11])
    save(figure, "alibi")


def loss() -> None:
    """A batch of NLI pairs, two of which share a premise, as the loss sees it."""
    pairs = [
        ("A man plays guitar.", "Someone makes music."),
        ("Two dogs run.", "Animals are moving."),
        ("A man plays guitar.", "A person holds an instrument."),
        ("Il pleut.", "It rains."),
    ]
    model = LacosSentenceTransformer("lacos-bloom")
    scores = model.similarity(*(model.encode([pair[side] for pair in pairs]) for side in (0, 1)))
    figure, axes = plt.subplots(figsize=(5.2, 3))
    for i, row in enumerate(pairs):
        for j, column in enumerate(pairs):
            masked = i != j and bool({*row} & {*column})
            colour = BLUE if i == j else GREY if masked else "white"
            axes.add_patch(plt.Rectangle((j, -i), 0.96, 0.9, fc=colour, ec=BLUE, lw=0.6))
            told = f"{scores[i, j]:.2f}" + ("\nleft out" if masked else "")
            axes.text(j + 0.48, 0.45 - i, told, ha="center", va="center", fontsize=8,
                      color="white" if i == j else "#7a8087" if masked else "black")  # fmt: skip
        axes.text(-0.1, 0.45 - i, row[0], ha="right", va="center", fontsize=8, color=BLUE)
        axes.text(i + 0.1, 1.0, row[1], rotation=25, fontsize=8, color=BLUE)
    axes.set(xlim=(-2, 5.2), ylim=(-3.2, 2.4))
    axes.axis("off")
    save(figure, "loss")


def languages() -> None:
    """Gemma 3 270M by language, before and after: from the tables that `lacos-st evaluate` wrote."""
    measured = Path(__file__).with_name("benchmarks") / "real"
    runs = {
        "before": ("gemma3-before", GREY),
        "after 3,601 English triplets": ("gemma3-en", MIDDLE),
        "after 7,488 in many languages": ("gemma3-multilingual", BLUE),
    }
    scores: dict[str, dict[str, float]] = {label: {} for label in runs}
    lexical: dict[str, float] = {}
    for label, (run, _) in runs.items():
        for file in sorted(measured.glob(f"{run}-*.csv")):
            for row in csv.DictReader(file.open(encoding="utf-8")):
                kind = {"model": scores[label], "baseline": lexical}.get(row["kind"])
                if kind is not None:
                    kind[row["set"]] = float(row["score"])
    names = {f"STSBenchmarkMultilingualSTS/{code}": name for code, name in BENCHMARK.items()}
    names |= {"local-stsb/hi": "Hindi"}
    names |= {f"STS17/{code}": name for code, name in ACROSS.items()}
    height = 0.8 / len(runs)
    figure, axes = plt.subplots(figsize=(7, 6.4))
    for position, name in enumerate(names):
        for run, (label, (_, colour)) in enumerate(runs.items()):
            at = -position + 0.4 - height * (run + 0.5)
            axes.barh(at, scores[label][name], height, color=colour, label=None if position else label)
        axes.vlines(lexical[name], -position - 0.42, -position + 0.42, color=ORANGE, lw=2,
                    label=None if position else "character n-grams")  # fmt: skip
    axes.set_yticks([-position for position in range(len(names))], names.values())
    axes.set(xlim=(0, 100), xlabel="Spearman x 100 on test sets: STS-B, and across languages STS17")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    save(figure, "languages")


def data() -> None:
    """Two decoders on STS-B's development set, against what they were trained on: each run with its 95 % interval."""
    measured = Path(__file__).with_name("benchmarks") / "real"
    places = {"before": "before", "text-1k": "900 sentences,\ntwice each"}
    places |= {f"en-{size}": f"{rows} triplets" for size, rows in (("1k", "900"), ("4k", "3,601"), ("16k", "15,488"))}
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for model, name, colour in (("gemma3", "Gemma 3 270M", BLUE), ("smollm2", "SmolLM2-135M", MIDDLE)):
        means = []
        for at, place in enumerate(places):
            files = sorted(measured.glob("dev-before.csv" if place == "before" else f"dev-{model}-{place}-s*.csv"))
            rows = [row for file in files for row in csv.DictReader(file.open(encoding="utf-8"))]
            runs = [
                row for row in rows if row["kind"] == "model" and (place != "before" or row["model"] == f"{model}-mean")
            ]
            for seed, run in enumerate(runs):
                score, low, high = (float(run[key]) for key in ("score", "low", "high"))
                aside = at + 0.06 * (seed - (len(runs) - 1) / 2)
                axes.errorbar(aside, score, [[score - low], [high - score]], fmt="o", ms=4, lw=1, color=colour)
            if runs and place.startswith("en-"):
                means.append((at, sum(float(run["score"]) for run in runs) / len(runs)))
        axes.plot(*zip(*means, strict=True), color=colour, lw=1.5, label=name)
    lexical = next(float(row["score"]) for row in rows if row["kind"] == "baseline")
    axes.axhline(lexical, color=ORANGE, lw=1.5, ls="--", label="character n-grams")
    axes.set_xticks(range(len(places)), places.values())
    axes.set(ylabel="Spearman x 100", ylim=(45, 90))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    save(figure, "data")


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "lacos-st"
    FOLDER.mkdir(exist_ok=True)
    packing()
    alibi()
    loss()
    languages()
    data()
