"""Stages 4 and 5: the student is trained to produce the targets, first as token vectors alone, then with layers.

4. `static`: no layers. A sentence is the mean of its token vectors. They start as the second teacher's embedding of
   each token's own string, mixed with its spelling. Without matrix products two CPU cores train on 10,000 sentences a
   second.
5. `deep`: layers over these vectors, which change nothing at first; everything is trained. A run that starts from a
   checkpoint with layers trains them further.

The loss is a sum of

* 1 - cosine of each sentence to its target;
* --matrix times the squared error of the batch's cosine matrix, and once more within each language;
* --near times the same within runs of similar sentences, since STS asks which of two similar pairs is nearer;
* --words times 1 - cosine of each English word to the teacher's state of that word in its context;
* --loudness times the error of how much each token weighs in its sentence; by its rarity, outside English.

With --round the layers read the table as 4 bits will store it. With --keep a layer's attention is left out of some
steps. New layers are first trained for a fifth of the steps with --near at most 10 and without rounding.

A run goes on where it was stopped if its output holds a state of the same stage. On a CPU it gives the same weights
every time; a GPU adds up in another order each time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from batches import RUN, Batch, Batches
from collect import FAVOUR
from student import (
    Rounding,
    StochasticDepth,
    adamw,
    config,
    grow,
    load_state,
    pool,
    quiet_,
    save,
    save_state,
    states,
)
from teach import strings_of
from torch.nn.functional import normalize
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lacos_st.decoder.bloom import LacosBloomModel
from lacos_st.decoder.quantization import has_fast_bf16

SPELLING = 0.6  # share in what a token begins with
SETTLING, NEAR_FIRST = 0.2, 10.0  # share of the steps in which new layers find their place, and --near meanwhile


def token_vectors(tokenizer: PreTrainedTokenizerBase, batches: Batches, work_dir: Path) -> torch.Tensor:
    """(vocabulary, hidden), unit length: the second teacher's embedding of each token's string, and how it is spelt."""
    said = torch.from_numpy(np.load(work_dir / "token-said.npy").astype(np.float32)).to(batches.device)
    said = normalize(normalize(said - said.mean(0)) @ batches.second.turn)
    every = torch.arange(len(tokenizer), device=batches.device)
    codes = torch.from_numpy(batches.characters(strings_of(tokenizer))).to(batches.device)
    spelt = batches.spelt(codes, torch.full_like(every, len(batches.known)), every, every)
    return batches.mixed(said, spelt, SPELLING).cpu()


def audible(batches: Batches) -> torch.Tensor:
    """(vocabulary,) in (0, 1]: how loudly a token begins to speak, by its rarity where it is most frequent.

    In languages that count: in others a piece of a word may be frequent by accident. None is silent altogether, or it
    would have no gradient.
    """
    counts = [FAVOUR.get(lang, 0) >= 0.5 for lang in batches.known]
    rarity = torch.from_numpy(batches.rarity[counts].min(0).astype(np.float32))
    return (rarity / rarity.max()).clamp_min(0.03)


def loss_of(student: torch.Tensor, batch: Batch, matrix: float, near: float) -> torch.Tensor:
    """1 - cosine to the target, and squared errors of cosines: of all pairs, within each language, and within a run."""
    student = normalize(student, dim=-1)
    error = (student @ student.T - batch.cosines).square()
    loss = 1 - (student * batch.targets).sum(-1).mean() + matrix * error.mean()
    start, sizes = 0, [size for size in batch.sizes if size]
    for size in sizes:
        loss = loss + matrix / len(sizes) * error[start : start + size, start : start + size].mean()
        start += size
    runs = len(student) // RUN
    within = error.view(runs, RUN, runs, RUN).diagonal(dim1=0, dim2=2)  # (RUN, RUN, runs)
    return loss + near * within.mean()


def loudness_loss(said: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Relative entropy, in nats, of each token's share in its sentence's mean to the share that it should have.

    Mean over the sentences that have one: English and single words do not.

    A student that cannot fit its targets lets frequent words say what all of them have in common. That lowers the
    error and drowns what tells sentences apart.
    """
    sentences = len(batch.bounds) - 1

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(sentences).index_add(0, batch.sentence, values)

    def share(loudness: torch.Tensor) -> torch.Tensor:
        return loudness / total(loudness).clamp_min(1e-6)[batch.sentence]

    wanted, found = share(batch.loudness), share(said.norm(dim=1))
    entropy = torch.xlogy(wanted, wanted) - wanted * found.clamp_min(1e-6).log()
    return entropy.sum() / (total(batch.loudness) > 0).sum().clamp_min(1)


def word_loss(said: torch.Tensor, batch: Batch) -> torch.Tensor:
    """1 - cosine of each word's states, added up, to its target; words that either side has cut off do not count."""
    words, places = batch.words, batch.places
    nowhere = torch.where(places >= 0, places, len(words))
    total = said.new_zeros(len(words) + 1, said.shape[1]).index_add(0, nowhere, said[: len(places)])[:-1]
    both = (words.square().sum(1) > 0.5) & (total.detach().square().sum(1) > 0)
    cosine = (normalize(total, dim=-1) * words).sum(-1)
    return (both * (1 - cosine)).sum() / both.sum().clamp_min(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["static", "deep"])
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--output", type=Path, help="default: the stage's name below --work-dir")
    parser.add_argument("--start", type=Path, help="deep: token vectors, or layers too; default: static/ in --work-dir")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=2048, help="sentences a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--lr-table", type=float, default=5e-3, help="of the embedding table")
    parser.add_argument("--english", type=float, default=0.42)
    parser.add_argument("--near", type=float, default=50.0, help="weight of the cosines within a run")
    parser.add_argument("--words", type=float, default=0.0, help="weight of the words, which teach.py has read")
    parser.add_argument("--loudness", type=float, default=0.0, help="weight of how loudly rare tokens should speak")
    parser.add_argument("--singles", type=float, default=0.0, help="share of single words in a batch")
    parser.add_argument("--round", action="store_true", help="read the table as 4 bits will have it")
    parser.add_argument(
        "--keep", type=float, default=1.0, help="share of the steps in which a layer's attention is there"
    )
    parser.add_argument("--matrix", type=float, default=5.0)
    parser.add_argument("--cooldown", type=float, default=0.3, help="share of the steps with falling learning rate")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    output = args.output or args.work_dir / args.stage
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True

    tokenizer = AutoTokenizer.from_pretrained(args.work_dir / "tokenizer")
    began = time.monotonic()
    batches = Batches(args.work_dir, args.hidden, args.device, args.english, args.singles)
    count, langs = sum(map(len, batches.pools.values())), len(batches.pools)
    print(f"{count:,} sentences of {langs} languages, read in {time.monotonic() - began:.0f} s", flush=True)
    start = args.start or args.work_dir / "static"
    fresh = args.stage == "deep" and not LacosBloomModel.config_class.from_pretrained(start).n_layer
    state = output / "state.safetensors"  # its own, of an earlier run
    if state.exists():
        model = LacosBloomModel(LacosBloomModel.config_class.from_pretrained(output))
        if bool(model.config.n_layer) != (args.stage != "static"):
            parser.error(f"{output} holds a run of the other stage: give another --output.")
    elif args.stage == "static":
        model = LacosBloomModel(config(len(tokenizer), args.hidden, 0))
        quiet_(model, token_vectors(tokenizer, batches, args.work_dir), audible(batches))
    else:
        model = LacosBloomModel.from_pretrained(start)
        model = grow(model, args.layers) if fresh else model
    model.to(device)
    optimizer, others = adamw(model, args.lr, args.lr_table)
    peak = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if state.exists():
        first = load_state(state, model, optimizer)
        print(f"going on at step {first}", flush=True)

    depth = StochasticDepth(model, args.keep)
    rounding = None
    model.train()
    began, tokens, mean = time.monotonic(), 0, 0.0
    fast = args.stage != "static" and (device.type == "cuda" or has_fast_bf16())
    for step in range(first, args.steps):
        settling = fresh and step < SETTLING * args.steps
        if args.round and not settling and (rounding is None or step % args.save_every == 0):
            rounding = Rounding(model)
        batch = batches.batch(args.batch, args.seed, step)
        factor = min(1.0, (step + 1) / 100, (args.steps - step) / max(1, args.cooldown * args.steps))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        depth.draw(np.random.default_rng([args.seed, step, 1]))  # not the dice of the batch
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            said = states(model, batch.ids, batch.bounds, rounding)
        near = min(NEAR_FIRST, args.near) if settling else args.near
        loss = loss_of(pool(said, batch.bounds), batch, args.matrix, near)
        if args.words:
            loss = loss + args.words * word_loss(said, batch)
        if args.loudness:
            loss = loss + args.loudness * loudness_loss(said, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        tokens, mean = tokens + len(batch.ids), mean + loss.detach()
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - began
            print(
                f"{step + 1} loss {float(mean) / 100:.4f} {100 / spent:.1f} steps/s {tokens / spent:.0f} tokens/s",
                flush=True,
            )
            began, tokens, mean = time.monotonic(), 0, 0.0
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            model.eval()
            save(model, output, args.work_dir / "tokenizer")
            save_state(state, model, optimizer, step + 1)
            model.train()


if __name__ == "__main__":
    main()
