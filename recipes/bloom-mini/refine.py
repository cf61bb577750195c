"""Stage after composing: near sentences in a better order, in two languages at a time.

Layers that have learnt sixty languages at once could know better which of two near sentences is nearer. A short run
over little text mends some of that, if it may look at few languages. In the first ones, which have the most text, the
order is the second teacher's. In all others it is the mean of this student's and, with `--beside`, of another's: two
students err in different places, while one that has learnt the teacher's order of a few thousand sentences by heart
orders those of development sets less well than before (`docs/log.md`).

    loss =  50 mean (c - t)^2 within runs + 5 mean (c - t)^2 within a language     near sentences, and far ones
          + 0.5 (1 - cosine to where it belongs) + 2 (the same + 5 mean (c - b)^2 of sentences of all languages)
    t    =  3/4 (a x + d) + 1/4 b in the first languages, b in others,   x = (u . v - m . m) / (1 - m . m)

c: cosines of two sentences now; b: before, the students' mean; u, v, m: what the teacher says of them, and its mean
(see `targets.py`). a and d bring the teacher's random and near pairs to where the students' lie: the order is
to change, not the scale, or pairs of two languages would no longer compare. A run is a sentence and three of its
neighbours. A sentence of the first languages belongs where the students' mean of its English is, any other where their
mean of itself is. Software's messages are left out of the first languages, and are the last choice in others.

    python refine.py work/bloom-mini/composed work/bloom-mini/refined
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from batches import RUN, draw, reach_of, runs_of
from collect import NOT_WRITTEN
from corpus import tokenize
from state import load_state, save_state
from student import StochasticDepth, adamw, pool, save, states
from teach import done
from torch import Tensor
from torch.nn.functional import normalize

from lacos_st.bloom import LacosBloomModel

FIRST = ["es", "fr", "pt"]  # one of them in every step, in 40 runs
RUNS = 40, 32  # and another language in 32
HELD = 104, 56  # sentences of all other languages, and of English
POOL = 30_000, 25_000  # from so many
BY_TEACHER, BY_STUDENTS = 10, 5  # neighbours
NEAR, FAR, PLACE, HOLD = 50.0, 5.0, 0.5, 2.0
TAUGHT = 0.75
KEEP = 0.8  # share of the steps in which a layer's attention is there
CHARACTERS = 160  # of a sentence in a run at most
ENOUGH = 500  # sentences, for a language to be among the others
MOST_OF_OTHERS = 4000


class Language(NamedTuple):
    """Sentences of one."""

    rows: np.ndarray  # of `texts.parquet`
    before: Tensor  # (sentences, hidden of all students), unit length: cosines are their mean
    place: Tensor  # (sentences, hidden) where each belongs
    near: np.ndarray  # (sentences, neighbours)
    reach: np.ndarray  # (sentences,) see `batches.py`
    said: Tensor | None = None  # (sentences, 384) by the teacher, unit length, in the first languages
    common: float = 0.0  # m . m
    scale: tuple[float, float] = (0.0, 0.0)  # a, d

    def wanted(self, at: np.ndarray) -> Tensor:
        """(sentences, sentences) the cosines t."""
        before = self.before[at] @ self.before[at].T
        if self.said is None:
            return before
        own = (self.said[at] @ self.said[at].T - self.common) / (1 - self.common)
        return TAUGHT * (self.scale[0] * own + self.scale[1]) + (1 - TAUGHT) * before


class Held(NamedTuple):
    """Sentences that should stay where they are."""

    rows: np.ndarray
    before: Tensor  # (sentences, hidden of all students)
    place: Tensor  # (sentences, hidden)


def nearest(vectors: Tensor, count: int) -> np.ndarray:
    """(sentences, count) the others with the highest cosines."""
    found = []
    for start in range(0, len(vectors), 2048):
        cosines = vectors[start : start + 2048] @ vectors.T
        cosines.diagonal(start).fill_(-2)
        found.append(cosines.topk(count).indices.cpu())
    return torch.cat(found).numpy()


def scale_of(said: Tensor, common: float, before: Tensor, near: np.ndarray) -> tuple[float, float]:
    """The a and d by which the teacher's random and near pairs have the students' mean cosines."""
    random = np.random.default_rng(0)
    first, other = random.integers(0, len(said), (2, 20_000))
    close = near[first, random.integers(0, near.shape[1], len(first))]

    def of(vectors: Tensor, second: np.ndarray) -> float:
        return float((vectors[first] * vectors[second]).sum(1).mean())

    teacher = [(of(said, second) - common) / (1 - common) for second in (other, close)]
    student = [of(before, second) for second in (other, close)]
    a = (student[1] - student[0]) / (teacher[1] - teacher[0])
    return a, student[0] - a * teacher[0]


def embeddings(model: LacosBloomModel, ids: Tensor, bounds: Tensor) -> Tensor:
    """(tokens,) ids of sentences end to end -> (sentences, hidden), unit length."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        said = states(model, ids, bounds)
    return normalize(pool(said, bounds), dim=-1)


class Text:
    """The training text, and what students say of it before this stage."""

    def __init__(self, work_dir: Path, students: list[LacosBloomModel]) -> None:
        table = pq.read_table(work_dir / "texts.parquet")
        ids, self.offsets = tokenize(work_dir)
        self.ids = torch.from_numpy(ids.astype(np.int32)).to(students[0].device)
        self.lang, self.source = (table[name].to_numpy().astype(str) for name in ("lang", "source"))
        self.english, self.students, self.work_dir = table["english"].to_numpy(), students, work_dir
        lengths = pc.utf8_length(table["text"]).to_numpy()
        self.useful = (lengths <= CHARACTERS) & ~np.isin(self.source, NOT_WRITTEN)

    def flat(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens end to end, and bounds."""
        first, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        bounds = np.cumsum([0, *lengths])
        at = np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], lengths)
        return self.ids[torch.from_numpy(at).to(self.ids.device)].long(), torch.from_numpy(bounds).to(self.ids.device)

    @torch.no_grad()
    def before(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(rows, hidden of all students), in which cosines are the mean of theirs, and (rows, hidden), their mean."""
        order = np.argsort(self.offsets[rows + 1] - self.offsets[rows], kind="stable")
        parts = [self.flat(part) for part in np.array_split(rows[order], len(rows) // 2048 + 1)]
        back = np.argsort(order)
        said = [torch.cat([embeddings(student, *part) for part in parts])[back] for student in self.students]
        return torch.cat(said, 1) / len(said) ** 0.5, normalize(torch.stack(said).sum(0), dim=-1)

    def first(self, most: int) -> list[Language]:
        """Languages in the teacher's order, at most so many sentences of each."""
        read = np.load(self.work_dir / "second-rows.npy")[: done(self.work_dir / "second.json")]
        table = np.load(self.work_dir / "second.npy", mmap_mode="r")
        useful = self.useful[read] & (self.source[read] != "catalogues")
        found = []
        for name in FIRST:
            at = np.flatnonzero(useful & (self.lang[read] == name))[:most]
            if len(at) <= BY_TEACHER:
                raise SystemExit(
                    f"The second teacher has read {len(at)} sentences of {name!r}: run teach.py second on."
                )
            rows, said = read[at], torch.from_numpy(table[at]).to(self.ids.device).float()
            before, _ = self.before(rows)
            _, place = self.before(np.where(self.english[rows] >= 0, self.english[rows], rows))
            near = np.hstack([nearest(said, BY_TEACHER), nearest(before, BY_STUDENTS)])
            common = float(said.mean(0).square().sum())
            scale = scale_of(said, common, before, near)
            found.append(Language(rows, before, place, near, reach_of(self.source[rows]), said, common, scale))
        return found

    def others(self) -> list[Language]:
        """All other languages with enough sentences, English twice."""
        random, found = np.random.default_rng(0), []
        names, counts = np.unique(self.lang[self.useful], return_counts=True)
        for name in names[counts >= ENOUGH]:
            if name in FIRST:
                continue
            rows = random.permutation(np.flatnonzero(self.useful & (self.lang == name)))
            software = self.source[rows] == "catalogues"  # if there is not enough else
            rows = np.concatenate([rows[~software], rows[software]])[: MOST_OF_OTHERS * (3 if name == "en" else 1)]
            before, place = self.before(rows)
            near = nearest(before, BY_TEACHER + BY_STUDENTS)
            found += [Language(rows, before, place, near, reach_of(self.source[rows]))] * (2 if name == "en" else 1)
        return found

    def held(self, english: bool, most: int) -> Held:
        """Of English, or of all languages but the first; one with little text has more than its part."""
        chance = (self.lang == "en" if english else ~np.isin(self.lang, ["en", *FIRST])) & (self.source != "cldr")
        _, code, counts = np.unique(self.lang, return_inverse=True, return_counts=True)
        weight = chance * counts[code] ** -0.6
        most = min(most, int(chance.sum()))
        rows = np.random.default_rng(0).choice(len(weight), most, replace=False, p=weight / weight.sum())
        return Held(rows, *self.before(rows))


def order_loss(found: Tensor, language: Language, at: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors within runs and within the language, and 1 - cosine to where sentences belong."""
    error = (found @ found.T - language.wanted(at)).square()
    runs = len(at) // RUN
    within = error.view(runs, RUN, runs, RUN).diagonal(dim1=0, dim2=2)
    return within.mean(), error.mean(), 1 - (found * language.place[at]).sum(1).mean()


def held_loss(found: Tensor, before: Tensor, place: Tensor) -> Tensor:
    """How far sentences have moved, each and to one another."""
    return 1 - (found * place).sum(1).mean() + 5 * (found @ found.T - before @ before.T).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of compose.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--beside", type=Path, help="another student of the same space, to hold all others' mean to")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--lr-table", type=float, default=1e-3, help="of the embedding table")
    parser.add_argument("--cooldown", type=float, default=0.6, help="share of the steps with falling learning rate")
    parser.add_argument("--most", type=int, default=30_000, help="sentences of each of the first languages")
    parser.add_argument("--times", type=int, default=1, help="so many times as many sentences in a step, and held")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    paths = [args.model, args.beside] if args.beside else [args.model]
    students = [LacosBloomModel.from_pretrained(path).eval().to(args.device) for path in paths]
    model = LacosBloomModel.from_pretrained(args.model).to(args.device)
    text = Text(args.work_dir, students)
    first, others = text.first(args.most), text.others()
    runs, sizes, pools = (args.times * np.array(counts) for counts in (RUNS, HELD, POOL))
    held = [text.held(english, most) for english, most in zip((False, True), pools, strict=True)]
    for name, language in zip(FIRST, first, strict=True):
        print(f"{name}: {len(language.rows):,} sentences, a {language.scale[0]:.2f}, d {language.scale[1]:.2f}")
    print(f"{len(others)} others: {sum(len(language.rows) for language in others):,}", flush=True)

    optimizer, clipped = adamw(model, args.lr, args.lr_table)
    peak = [group["lr"] for group in optimizer.param_groups]
    state = args.output / "state.safetensors"
    step = load_state(state, model, optimizer) if state.exists() else 0
    depth = StochasticDepth(model, KEEP)
    model.train()
    began, sums = time.monotonic(), torch.zeros(4, device=args.device)
    weights = torch.tensor([NEAR, FAR, PLACE, HOLD], device=args.device)
    while step < args.steps:
        factor = min(1.0, (step + 1) / 50, (args.steps - step) / max(1, args.cooldown * args.steps))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        random = np.random.default_rng([args.seed, step])
        chosen = [first[step % len(first)], others[random.integers(len(others))]]
        begun = [draw(language.reach, count, random) for language, count in zip(chosen, runs, strict=True)]
        drawn = [runs_of(at, language.near[at], random) for language, at in zip(chosen, begun, strict=True)]
        kept = [random.integers(0, len(part.rows), count) for part, count in zip(held, sizes, strict=True)]
        rows = [part.rows[at] for part, at in zip([*chosen, *held], [*drawn, *kept], strict=True)]
        ids, bounds = text.flat(np.concatenate(rows))
        depth.draw(np.random.default_rng([args.seed, step, 1]))  # not the dice of the batch
        found = embeddings(model, ids, bounds).split([*map(len, rows)])
        parts = [order_loss(*each) for each in zip(found, chosen, drawn, strict=False)]
        near, far, place = (
            sum(share / sum(RUNS) * loss for share, loss in zip(RUNS, losses, strict=True))
            for losses in zip(*parts, strict=True)
        )
        stay = [torch.cat([getattr(part, name)[at] for part, at in zip(held, kept, strict=True)])
                for name in ("before", "place")]  # fmt: skip
        losses = torch.stack([near, far, place, held_loss(torch.cat(found[2:]), *stay)])
        optimizer.zero_grad(set_to_none=True)
        (losses * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        step, sums = step + 1, sums + losses.detach()
        if step % 100 == 0:
            spent = (time.monotonic() - began) / 100
            shown = " ".join(f"{loss / 100:.4f}" for loss in sums.tolist())
            print(f"{step} near, far, place, held: {shown} {spent:.2f} s a step", flush=True)
            began, sums = time.monotonic(), torch.zeros_like(sums)
        if step % args.save_every == 0 or step == args.steps:
            args.output.mkdir(parents=True, exist_ok=True)
            save_state(state, model, optimizer, step)
    save(model, args.output, args.model)
    print(f"{args.output}: {args.steps} steps")


if __name__ == "__main__":
    main()
