"""Draw the figures of `how-it-works.md`: `python docs/figures.py` writes `docs/figures/*.svg`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from lacos_st import LacosSentenceTransformer
from lacos_st.decoder.attention import alibi_slopes

FOLDER = Path(__file__).with_name("figures")
BLUE, PALE, GREY = "#34506c", "#b9d0e6", "#e4e7ea"


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
        "Two dogs run .": "#6a95be",
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


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "lacos-st"
    FOLDER.mkdir(exist_ok=True)
    packing()
    alibi()
    loss()
