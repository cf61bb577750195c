"""Stage after composing: near sentences in the order that the second teacher gives them, in a few languages at a time.

Layers that have learnt sixty languages at once know little of which of two near sentences is nearer: over neighbours
in Spanish their cosines correlate by 0.4 with the second teacher's. A short run over little text mends some of that, if
it may look at few languages, and is held elsewhere to what the student said before:

    loss =  50 mean (c - t)^2 within runs + 5 mean (c - t)^2 within a language     near sentences, and far ones
          + 0.5 (1 - cosine to what the student said of the sentence in English)   translations stay together
          + 2 (1 - cosine to what it said before) + 10 mean (c - before)^2         English and all other languages
    t    =  3/4 (a x + b) + 1/4 before,   x = (u . v - m . m) / (1 - m . m)        see `targets.py`

c, t: cosines of two sentences; u, v, m: what the teacher says of them, and its mean. a and b bring the teacher's random
and near pairs to where the student's lie on average: the order is to change, not the scale, or pairs of two languages
would no longer compare. A run is a sentence and three of its neighbours, two thirds of them the teacher's, one third
those that the student takes for near. Software's messages are left out: Swedish and
Marathi, of which there was little else, lost when drawn to an order of those. At the
end layers go back a part of the way, token vectors stay.

    python refine.py work/bloom-mini/composed work/bloom-mini/refined
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batches import RUN
from collect import NOT_WRITTEN
from corpus import tokenize
from state import load_state, save_state
from student import StochasticDepth, adamw, pool, save, states
from teach import done
from torch import Tensor
from torch.nn.functional import normalize

from lacos_st.bloom import LacosBloomModel

FIRST = ["es", "fr", "pt"]  # one of them in every step, in 40 runs
THEN = ["ar", "de", "fa", "hi", "id", "it", "ja", "ko", "ru", "sv", "tr", "zh"]  # and one of these, in 32
RUNS = 40, 32
HELD = 112, 48  # sentences of other languages, and of English
POOL = 70_000, 40_000  # from so many
BY_TEACHER, BY_STUDENT = 10, 5  # neighbours
NEAR, FAR, ENGLISH, BEFORE = 50.0, 5.0, 0.5, 2.0
TAUGHT = 0.75
KEEP = 0.8  # share of the steps in which a layer's attention is there
CHARACTERS = 160  # of a taught sentence at most


class Language(NamedTuple):
    """Sentences of one that the teacher has read."""

    rows: np.ndarray  # of `texts.parquet`
    said: Tensor  # (sentences, 384) by the teacher, unit length
    before: Tensor  # (sentences, hidden) by the student
    english: Tensor  # (sentences, hidden) by the student, of their English; of themselves where none is known
    near: np.ndarray  # (sentences, neighbours)
    reach: np.ndarray  # (sentences,) ascending to 1: a source is drawn in proportion to the root of its sentences
    common: float  # m . m
    scale: tuple[float, float]  # a, b

    def wanted(self, at: np.ndarray) -> Tensor:
        """(sentences, sentences) the cosines t."""
        said, before = self.said[at], self.before[at]
        own = (said @ said.T - self.common) / (1 - self.common)
        return TAUGHT * (self.scale[0] * own + self.scale[1]) + (1 - TAUGHT) * before @ before.T


class Held(NamedTuple):
    """Sentences that should stay where they are."""

    rows: np.ndarray
    before: Tensor  # (sentences, hidden)


def nearest(vectors: Tensor, count: int) -> np.ndarray:
    """(sentences, count) the others with the highest cosines."""
    found = []
    for start in range(0, len(vectors), 2048):
        cosines = vectors[start : start + 2048] @ vectors.T
        cosines.diagonal(start).fill_(-2)
        found.append(cosines.topk(count).indices.cpu())
    return torch.cat(found).numpy()


def scale_of(said: Tensor, common: float, before: Tensor, near: np.ndarray) -> tuple[float, float]:
    """The a and b by which the teacher's random and near pairs have the student's mean cosines."""
    random = np.random.default_rng(0)
    first, other = random.integers(0, len(said), (2, 20_000))
    close = near[first, random.integers(0, near.shape[1], len(first))]

    def of(vectors: Tensor, second: np.ndarray) -> float:
        return float((vectors[first] * vectors[second]).sum(1).mean())

    teacher = [(of(said, second) - common) / (1 - common) for second in (other, close)]
    student = [of(before, second) for second in (other, close)]
    a = (student[1] - student[0]) / (teacher[1] - teacher[0])
    return a, student[0] - a * teacher[0]


class Text:
    """The training text, and what the student says of it before this stage."""

    def __init__(self, work_dir: Path, model: LacosBloomModel) -> None:
        table = pq.read_table(work_dir / "texts.parquet")
        ids, self.offsets = tokenize(work_dir)
        self.ids = torch.from_numpy(ids.astype(np.int32)).to(model.device)
        self.lang, self.source = (table[name].to_numpy().astype(str) for name in ("lang", "source"))
        self.english, self.text = table["english"].to_numpy(), table["text"].combine_chunks()
        self.model, self.work_dir = model, work_dir

    @torch.no_grad()
    def said_before(self, rows: np.ndarray) -> Tensor:
        """(rows, hidden), unit length."""
        order = np.argsort(self.offsets[rows + 1] - self.offsets[rows], kind="stable")
        said = [embeddings(self.model, *self.flat(part)) for part in np.array_split(rows[order], len(rows) // 2048 + 1)]
        return torch.cat(said)[np.argsort(order)]

    def languages(self, names: list[str], most: int) -> dict[str, Language]:
        """What is known of each; at most so many of its sentences."""
        read = np.load(self.work_dir / "second-rows.npy")[: done(self.work_dir / "second.json")]
        table = np.load(self.work_dir / "second.npy", mmap_mode="r")
        lengths = np.array([len(text) for text in self.text.take(pa.array(read)).to_pylist()])
        useful = (lengths <= CHARACTERS) & ~np.isin(self.source[read], [*NOT_WRITTEN, "catalogues"])
        found = {}
        for name in names:
            at = np.flatnonzero(useful & (self.lang[read] == name))[:most]
            if len(at) <= BY_TEACHER:
                raise SystemExit(
                    f"The second teacher has read {len(at)} sentences of {name!r}: run teach.py second on."
                )
            rows, said = read[at], torch.from_numpy(table[at]).to(self.ids.device).float()
            before = self.said_before(rows)
            english = self.said_before(np.where(self.english[rows] >= 0, self.english[rows], rows))
            near = np.hstack([nearest(said, BY_TEACHER), nearest(before, BY_STUDENT)])
            common = float(said.mean(0).square().sum())
            scale = scale_of(said, common, before, near)
            _, code, counts = np.unique(self.source[rows], return_inverse=True, return_counts=True)
            reach = np.cumsum(counts[code] ** -0.5)
            found[name] = Language(rows, said, before, english, near, reach / reach[-1], common, scale)
        return found

    def held(self, names: list[str], english: bool, most: int) -> Held:
        """Of English, or of all other languages; one with little text has more than its part."""
        chance = (self.lang == "en" if english else ~np.isin(self.lang, ["en", *names])) & (self.source != "cldr")
        _, code, counts = np.unique(self.lang, return_inverse=True, return_counts=True)
        weight = chance * counts[code] ** -0.6
        most = min(most, int(chance.sum()))
        rows = np.random.default_rng(0).choice(len(weight), most, replace=False, p=weight / weight.sum())
        return Held(rows, self.said_before(rows))

    def flat(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens end to end, and bounds."""
        first, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        bounds = np.cumsum([0, *lengths])
        at = np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], lengths)
        return self.ids[torch.from_numpy(at).to(self.ids.device)].long(), torch.from_numpy(bounds).to(self.ids.device)


def embeddings(model: LacosBloomModel, ids: Tensor, bounds: Tensor) -> Tensor:
    """(tokens,) ids of sentences end to end -> (sentences, hidden), unit length."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        said = states(model, ids, bounds)
    return normalize(pool(said, bounds), dim=-1)


def draw(reach: np.ndarray, near: np.ndarray, runs: int, random: np.random.Generator) -> np.ndarray:
    """(runs * RUN,) sentences: one, and some of its neighbours."""
    first = np.searchsorted(reach, random.random(runs), side="right")
    columns = np.argsort(random.random((runs, near.shape[1])), 1)[:, : RUN - 1]
    return np.concatenate([first[:, None], np.take_along_axis(near[first], columns, 1)], 1).ravel()


def taught_loss(found: Tensor, language: Language, at: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors within runs and within the language, and 1 - cosine to the English."""
    error = (found @ found.T - language.wanted(at)).square()
    runs = len(at) // RUN
    within = error.view(runs, RUN, runs, RUN).diagonal(dim1=0, dim2=2)
    return within.mean(), error.mean(), 1 - (found * language.english[at]).sum(1).mean()


def held_loss(found: Tensor, before: Tensor) -> Tensor:
    """How far sentences have moved, each and to one another."""
    return 1 - (found * before).sum(1).mean() + 5 * (found @ found.T - before @ before.T).square().mean()


def mean_of_(model: LacosBloomModel, other: LacosBloomModel, share: float) -> None:
    """Weights of `model` become the mean, `share` of it of `other`; the table becomes the other's."""
    weights = other.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.lerp_(weights[name], 1.0 if name == "word_embeddings.weight" else share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of compose.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--lr-table", type=float, default=1e-3, help="of the embedding table")
    parser.add_argument("--cooldown", type=float, default=0.6, help="share of the steps with falling learning rate")
    parser.add_argument("--share", type=float, default=0.8, help="of the layers after, in their mean with those before")
    parser.add_argument("--most", type=int, default=30_000, help="sentences of a language")
    parser.add_argument("--times", type=int, default=1, help="so many times as many sentences in a step, and held")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    before = LacosBloomModel.from_pretrained(args.model).eval().to(args.device)
    model = LacosBloomModel.from_pretrained(args.model).to(args.device)
    text = Text(args.work_dir, before)
    languages = text.languages([*FIRST, *THEN], args.most)
    runs, sizes, pools = (args.times * np.array(counts) for counts in (RUNS, HELD, POOL))
    held = [text.held([*languages], english, most) for english, most in zip((False, True), pools, strict=True)]
    for name, language in languages.items():
        print(f"{name}: {len(language.rows):,} sentences, a {language.scale[0]:.2f}, b {language.scale[1]:.2f}")

    optimizer, others = adamw(model, args.lr, args.lr_table)
    peak = [group["lr"] for group in optimizer.param_groups]
    state = args.output / "state.safetensors"
    step = load_state(state, model, optimizer) if state.exists() else 0
    depth = StochasticDepth(model, KEEP)
    model.train()
    began, sums = time.monotonic(), torch.zeros(4, device=args.device)
    weights = torch.tensor([NEAR, FAR, ENGLISH, BEFORE], device=args.device)
    while step < args.steps:
        factor = min(1.0, (step + 1) / 50, (args.steps - step) / max(1, args.cooldown * args.steps))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        random = np.random.default_rng([args.seed, step])
        chosen = [languages[names[step % len(names)]] for names in (FIRST, THEN)]
        drawn = [draw(each.reach, each.near, count, random) for each, count in zip(chosen, runs, strict=True)]
        kept = [random.integers(0, len(part.rows), count) for part, count in zip(held, sizes, strict=True)]
        rows = [part.rows[at] for part, at in zip([*chosen, *held], [*drawn, *kept], strict=True)]
        ids, bounds = text.flat(np.concatenate(rows))
        depth.draw(np.random.default_rng([args.seed, step, 1]))  # not the dice of the batch
        found = embeddings(model, ids, bounds).split([*map(len, rows)])
        parts = [taught_loss(*each) for each in zip(found, chosen, drawn, strict=False)]
        near, far, english = (
            sum(share / sum(RUNS) * loss for share, loss in zip(RUNS, losses, strict=True))
            for losses in zip(*parts, strict=True)
        )
        still = held_loss(
            torch.cat(found[2:]), torch.cat([part.before[at] for part, at in zip(held, kept, strict=True)])
        )
        losses = torch.stack([near, far, english, still])
        optimizer.zero_grad(set_to_none=True)
        (losses * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        step, sums = step + 1, sums + losses.detach()
        if step % 100 == 0:
            spent = (time.monotonic() - began) / 100
            shown = " ".join(f"{loss / 100:.4f}" for loss in sums.tolist())
            print(f"{step} near, far, English, before: {shown} {spent:.2f} s a step", flush=True)
            began, sums = time.monotonic(), torch.zeros_like(sums)
        if step % args.save_every == 0 or step == args.steps:
            args.output.mkdir(parents=True, exist_ok=True)
            save_state(state, model, optimizer, step)
    mean_of_(before, model, args.share)
    save(before, args.output, args.model)
    print(f"{args.output}: {args.share:.0%} of the layers after, the rest as before")


if __name__ == "__main__":
    main()
