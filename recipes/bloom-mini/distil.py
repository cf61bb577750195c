"""Stages 3 and 4: the student learns the teacher's space.

3. `static`: no layers. A sentence is the mean of its token vectors; they start as the second teacher's embedding of the
   token's own string, its spelling mixed in, and are trained on all sentences. No matrix products, so two CPU cores do
   25,000 sentences a second.
4. `deep`: layers are put over them that begin by changing nothing, and everything is trained on.

The loss draws a sentence to its target (`targets.py`; 1 - cosine), the batch's cosine matrix to that of what targets
are made of (mean squared difference, times --matrix), within each language once more, and within runs of similar
sentences (times --near): which of two near pairs is nearer is what STS asks. With --words it also draws each English
word to what the teacher says of it there, which is what layers learn to use a context from; with --loudness each
token's share in a sentence, outside English, to its rarity in that language. With --round the table is read as 4 bits
will have it; with --keep layers must do without attention in some steps. Training is in the space that is compared at
the end: there is no projection head to throw away.

A run is resumed where it stopped if its output holds a state of the same stage. Under `torchrun` several processes
share a step, each with its own sentences; on busy cores two processes of one thread beat one process of two.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from collect import FAVOUR
from corpus import Batch, Corpus, Counts
from dev import encode, evaluate, tasks
from second_teacher import embed
from space import unit
from state import load_state, save_state
from student import Rounding, StochasticDepth, config, grow, pool, quiet_, save, states
from torch.nn.functional import normalize
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from words import Words

from lacos_st.bloom import LacosBloomModel
from lacos_st.quantization import has_fast_bf16


def token_vectors(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, work_dir: Path, lexical: float) -> np.ndarray:
    """(vocabulary, hidden), unit length: the second teacher's embedding of each token's string, and how it is spelt."""
    strings = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    path = work_dir / f"token-vectors-{len(tokenizer)}.npy"
    if not path.exists():
        np.save(path, embed([string.strip() for string in strings]))
    spelt = corpus.targets.lexical(strings)
    said = np.load(path).astype(np.float32)
    said = unit(unit(said - said.mean(0)) @ corpus.targets.space.second)
    noise = np.random.default_rng(0).standard_normal(said.shape) * 0.1 / said.shape[1] ** 0.5
    return unit((1 - lexical) ** 0.5 * said + lexical**0.5 * spelt + noise).astype(np.float32)


def audible(counts: Counts) -> np.ndarray:
    """(vocabulary,) in (0, 1]: how loudly a token begins to speak, by its rarity where it is most frequent.

    In languages that count: in others a piece of a word may be frequent by accident. None is silent altogether, or it
    would have no gradient.
    """
    rarity = counts.of(lang for lang, factor in FAVOUR.items() if factor >= 0.5).rarity().min(0)
    return np.maximum(rarity / rarity.max(), 0.03)


def loss_of(student: torch.Tensor, batch: Batch, matrix: float, near: float, run: int) -> torch.Tensor:
    """1 - cosine to the target, and squared errors of cosines: of all pairs, within each language, and within a run."""
    student = normalize(student, dim=-1)
    error = (student @ student.T - batch.cosines).square()
    loss = 1 - (student * batch.targets).sum(-1).mean() + matrix * error.mean()
    start = 0
    for size in batch.sizes:
        loss = loss + matrix / len(batch.sizes) * error[start : start + size, start : start + size].mean()
        start += size
    together = torch.arange(len(student)) // run
    return loss + near * error[together[:, None] == together].mean()


def loudness_loss(said: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Relative entropy, in nats, of each token's share in its sentence's mean to the share that it should have.

    Mean over the sentences that have one: English and single words do not.

    A student that cannot fit its targets lets frequent words say what all of them have in common. That lowers the
    error and drowns what tells sentences apart.
    """
    lengths = batch.bounds.diff()
    sentence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    def share(loudness: torch.Tensor) -> torch.Tensor:
        total = loudness.new_zeros(len(lengths)).index_add(0, sentence, loudness)
        return loudness / total.clamp_min(1e-6)[sentence]

    wanted, found = share(batch.loudness), share(said.norm(dim=1))
    entropy = torch.xlogy(wanted, wanted) - wanted * found.clamp_min(1e-6).log()
    return entropy.sum() / max(1, len(sentence[wanted > 0].unique()))


def word_loss(said: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each word's states, added up, to its target; words that either side has cut off do not count."""
    tokens = torch.nonzero(places >= 0)[:, 0]
    total = said.new_zeros(len(targets), said.shape[1]).index_add(0, places[tokens], said[tokens])
    both = targets.any(1) & torch.zeros(len(targets), dtype=torch.bool).index_fill(0, places[tokens], True)
    return 1 - (normalize(total[both], dim=-1) * targets[both]).sum(-1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["static", "deep"])
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--data-dir", type=Path, help="folder with sts/: development scores on the way")
    parser.add_argument("--output", type=Path, help="default: the stage's name below --work-dir")
    parser.add_argument(
        "--start", type=Path, help="deep: token vectors, or layers too; default: static below --work-dir"
    )
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--until", type=int, help="stop after this step, to go on with other weights of the loss")
    parser.add_argument("--batch", type=int, default=256, help="sentences a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--lr-table", type=float, default=5e-3, help="of the embedding table")
    parser.add_argument("--english", type=float, default=0.4)
    parser.add_argument("--lexical", nargs="*", metavar="LANG=SHARE", help="of the spelling in the target; *: others")
    parser.add_argument("--pooling", choices=["mean", "weightedmean"], default="mean")
    parser.add_argument("--run", type=int, default=8, help="similar sentences drawn together")
    parser.add_argument("--near", type=float, default=50.0, help="weight of the cosines within a run")
    parser.add_argument("--words", type=float, default=0.0, help="weight of the words, which teach.py has read")
    parser.add_argument("--loudness", type=float, default=0.0, help="weight of how loudly rare tokens should speak")
    parser.add_argument("--singles", type=float, default=0.0, help="share of single words in a batch")
    parser.add_argument(
        "--glosses", type=float, default=1.0, help="weight of dictionaries and names of emoji beside other sources"
    )
    parser.add_argument("--round", action="store_true", help="read the table as 4 bits will have it")
    parser.add_argument(
        "--keep", type=float, default=1.0, help="share of the steps in which a layer's attention is there"
    )
    parser.add_argument("--favour", nargs="*", default=[], metavar="LANG=FACTOR", help="languages to draw more often")
    parser.add_argument("--longest", type=int, default=48)
    parser.add_argument("--matrix", type=float, default=5.0)
    parser.add_argument("--cooldown", type=float, default=0.3, help="share of the steps with falling learning rate")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage == "deep" and not (args.work_dir / "own.npy").exists():
        parser.error(f"{args.work_dir} has no own.npy: run own.py on the token vectors first.")
    output = args.output or args.work_dir / args.stage
    torch.manual_seed(args.seed)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")

    tokenizer = AutoTokenizer.from_pretrained(args.work_dir / "tokenizer")
    favour = {lang: float(factor) for lang, factor in (item.split("=") for item in args.favour)}
    lexical = {None if k == "*" else k: float(v) for k, v in (item.split("=") for item in args.lexical or [])}
    corpus = Corpus(
        args.work_dir,
        args.hidden,
        longest=args.longest,
        english=args.english,
        favour=favour,
        lexical=lexical,
        run=args.run,
        singles=args.singles,
        glosses=args.glosses,
        own=args.stage == "deep",
    )
    words = Words.load(args.work_dir, corpus.targets.space) if args.words else None
    print(f"{sum(map(len, corpus.pools.values())):,} sentences of {len(corpus.pools)} languages", flush=True)
    state = output / "state.safetensors"  # its own, of an earlier run
    if state.exists():
        model = LacosBloomModel(LacosBloomModel.config_class.from_pretrained(output))
    elif args.stage == "static":
        model = LacosBloomModel(config(len(tokenizer), args.hidden, 0))
        vectors = token_vectors(tokenizer, corpus, args.work_dir, lexical=0.6)
        quiet_(model, torch.from_numpy(vectors), torch.from_numpy(audible(corpus.counts)))
    else:
        model = LacosBloomModel.from_pretrained(args.start or args.work_dir / "static")
        model = model if model.config.n_layer else grow(model, args.layers)
    table = [model.word_embeddings.weight]
    others = [p for name, p in model.named_parameters() if name != "word_embeddings.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": args.lr}, {"params": table, "lr": args.lr_table}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    peak = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if state.exists():
        first = load_state(state, model, optimizer)
        print(f"going on at step {first}", flush=True)
    sets = tasks(args.data_dir / "sts", 300, "[defhinprz][elrshiut]") if args.data_dir else {}

    rounding = Rounding(model) if args.round else None
    depth = StochasticDepth(model, args.keep)
    model.train()
    began, seen, tokens, mean = time.monotonic(), 0, 0, 0.0
    last = min(args.steps, args.until or args.steps)
    for step in range(first, last):
        batch = corpus.batch(args.batch // world, args.seed, step * world + rank)
        factor = min(1.0, (step + 1) / 100, (args.steps - step) / max(1, args.cooldown * args.steps))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        depth.draw(np.random.default_rng([args.seed, step]))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.stage == "deep" and has_fast_bf16()):
            said = states(model, batch.ids, batch.bounds, rounding)
        loss = loss_of(pool(said, batch.bounds, args.pooling), batch, args.matrix, args.near, args.run)
        if words is not None:
            targets, places = words.gather(batch.english, batch.bounds[: len(batch.english) + 1].numpy())
            loss = loss + args.words * word_loss(said, targets, places)
        if args.loudness:
            loss = loss + args.loudness * loudness_loss(said, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad.div_(world))
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        seen, tokens, mean = seen + args.batch, tokens + len(batch.ids), mean + loss.item()
        if (step + 1) % 20 == 0 and rank == 0:
            spent = time.monotonic() - began
            print(
                f"{step + 1} loss {mean / 20:.4f} {seen / spent:.0f} sentences/s {tokens / spent:.0f} tokens/s",
                flush=True,
            )
            mean = 0.0
        if rank == 0 and ((step + 1) % args.save_every == 0 or step + 1 == last):
            model.eval()
            save(model, output, args.work_dir / "tokenizer")
            save_state(state, model, optimizer, step + 1)
            if sets:
                scores = evaluate(partial(encode, model, tokenizer, pooling=args.pooling), sets)
                with open(output / "dev.jsonl", "a") as log:
                    log.write(json.dumps({"step": step + 1, **scores}) + "\n")
                print(json.dumps(scores), flush=True)
            model.train()
            began, seen, tokens = time.monotonic(), 0, 0


if __name__ == "__main__":
    main()
