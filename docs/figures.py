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
BLUE, PALE, GREY, RED = "#34506c", "#b9d0e6", "#e4e7ea", "#c0504d"


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure, the same bytes at every run."""
    figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def packing() -> None:
    """Four texts, as a padded batch and packed."""
    texts = {"It rains .": 3, "A man plays the guitar .": 6, "Hello !": 2, "Two dogs run .": 4}
    longest = max(texts.values())
    figure, axes = plt.subplots(figsize=(7, 3))
    for row, (text, length) in enumerate(texts.items()):
        for column in range(longest):
            word = text.split()[column] if column < length else "pad"
            colour = PALE if column < length else GREY
            axes.add_patch(plt.Rectangle((column, -row), 0.94, 0.9, fc=colour))
            axes.text(column + 0.47, 0.45 - row, word, ha="center", va="center", fontsize=8,
                      color=BLUE if column < length else "#9aa0a6")  # fmt: skip
    start = 0
    for number, (text, length) in enumerate(sorted(texts.items(), key=lambda item: item[1])):
        for column, word in enumerate(text.split()):
            place = 0.42 * (start + column)
            axes.add_patch(plt.Rectangle((place, -5.4), 0.4, 0.9, fc=PALE if number % 2 else "#dce8f3"))
            axes.text(place + 0.2, -4.95, word, ha="center", va="center", fontsize=6.5, color=BLUE)
        start += length
    axes.text(6.2, -1, f"padded:\n{len(texts) * longest} tokens", va="center", color=BLUE)
    axes.text(6.5, -4.95, f"packed: {start} tokens", va="center", color=BLUE)
    axes.set(xlim=(0, 9), ylim=(-5.6, 1))
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
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.9))
    for axes, (mode, bias) in zip(panels, biases.items(), strict=True):
        axes.imshow(bias, cmap="Blues_r", vmin=-5, vmax=1)
        axes.set(title=mode, xlabel="key j", xticks=[0, 11], yticks=[0, 11])
    panels[0].set_ylabel("query i")
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
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
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
    axes.set(xlim=(-2, 5.4), ylim=(-3.2, 2.4))
    axes.axis("off")
    save(figure, "loss")


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "lacos-st"
    FOLDER.mkdir(exist_ok=True)
    packing()
    alibi()
    loss()
