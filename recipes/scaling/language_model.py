"""Small BLOOM bases that have only ever predicted the next token.

The embedded bloom-mini is distilled from a sentence encoder, so it cannot show what LACoS makes of a language model.
These bases can: three sizes, each stopped at three amounts of text, from two seeds.

* Text. A document is a sentence, or a sentence with its English translation in random order; languages are en, es,
  fr, pt. Sources are drawn in proportion to the square root of their size, each document at most once, so an amount
  of text is a prefix of the seed's order and the larger amounts contain the smaller ones.
* Shapes. A step packs about 1,024 tokens of whole documents end to end, (1, N) with boundaries; no document sees
  another. The softmax is tied to the token table and has 4,096 entries, else it would cost more than the layers.
* Rate. A trunk runs at a constant rate after 20 steps of warm-up; at 80 % of each amount a copy branches off, whose
  rate falls linearly to 0 over the last 20 %. So every base has had its own decay, as if it had been planned alone,
  while one run pays for all three (Hägele et al., 2024, arXiv 2405.18392). The rate is 3e-3 at width 64 and falls with
  the square root of the width.

A run killed at any moment goes on from its last state and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BloomConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lacos_st.decoder.bloom import LacosBloomModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "bloom-mini"))
from state import load_state, save_state
from tokenizer import build

LANGUAGES = ("en", "es", "fr", "pt")
SIZES = {"64x2": (64, 2), "128x3": (128, 3), "192x4": (192, 4)}  # hidden size, layers; heads of 32
STEP_TOKENS = 1024
LONGEST = 128  # tokens of a document
WARMUP = 20
BRANCH = 0.8  # where the decay branches off
SAVE_EVERY = 200
HELD_OUT = 512  # documents that no run trains on


@dataclass(frozen=True)
class Documents:
    """Documents end to end."""

    ids: Tensor  # (tokens,) int64
    bounds: Tensor  # (documents + 1,) int64

    def part(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Ids and boundaries of documents `first` to `last`."""
        bounds = self.bounds[first : last + 1]
        return self.ids[bounds[0] : bounds[-1]], bounds - bounds[0]


class Text:
    """`texts.parquet` as documents.

    Args:
        work_dir: The work directory of bloom-mini's recipe; `collect.py` has removed all STS sentences from it.
    """

    def __init__(self, work_dir: Path) -> None:
        table = pq.read_table(work_dir / "texts.parquet")
        self.texts = table["text"].combine_chunks()
        self.english = table["english"].to_numpy()
        language, source = np.array(table["lang"].to_pylist()), np.array(table["source"].to_pylist())
        self.rows = np.flatnonzero(np.isin(language, LANGUAGES))
        stratum = np.char.add(np.char.add(language[self.rows], " "), source[self.rows])
        size = Counter(stratum.tolist())
        self.weight = np.array([size[name] ** -0.5 for name in stratum])
        # A sentence and its translations are held out together.
        meaning = np.where(self.english[self.rows] >= 0, self.english[self.rows], self.rows)
        chosen = np.random.default_rng(0).choice(len(self.rows), HELD_OUT, replace=False)
        self.held_out = np.isin(meaning, meaning[chosen])
        self.chosen = self.rows[chosen]

    def order(self, seed: int) -> np.ndarray:
        """Rows in the order of a seed: drawn by weight, without replacement (Efraimidis & Spirakis, 2006)."""
        keys = np.random.default_rng(seed).exponential(size=len(self.rows)) / self.weight
        return self.rows[np.argsort(np.where(self.held_out, np.inf, keys))][: -self.held_out.sum()]

    def tokenizer(self, path: Path, vocabulary: int, sentences: int = 200_000) -> PreTrainedTokenizerFast:
        """The tokenizer at `path`, built on the first call."""
        if not path.exists():
            sample = self.texts.take(self.order(0)[:sentences]).to_pylist()
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            build(sample, vocabulary).save_pretrained(temporary)
            try:
                temporary.rename(path)
            except OSError:  # another process was faster; its tokenizer is the same
                shutil.rmtree(temporary)
        return AutoTokenizer.from_pretrained(path)

    def documents(
        self, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int, tokens: int | None = None
    ) -> Documents:
        """Documents of `rows`, as many as give `tokens` tokens."""
        random = np.random.default_rng([seed, 1])
        pieces: list[np.ndarray] = []
        total = 0
        for start in range(0, len(rows), 4096):
            chunk = rows[start : start + 4096]
            partner = self.english[chunk]
            joined = (partner >= 0) & (partner != chunk)
            own = tokenizer(self.texts.take(chunk).to_pylist())["input_ids"]
            other = iter(tokenizer(self.texts.take(partner[joined]).to_pylist())["input_ids"] if joined.any() else [])
            for ids, pair, swap in zip(own, joined, random.random(len(chunk)) < 0.5, strict=True):
                if pair:
                    translation = next(other)
                    ids = translation + ids if swap else ids + translation
                pieces.append(np.array(ids[:LONGEST]))
                total += len(pieces[-1])
            if tokens is not None and total >= tokens + STEP_TOKENS:
                break
        else:
            if tokens is not None:
                raise SystemExit(
                    f"The text has {total:,} tokens, and {tokens:,} are asked for: choose a smaller amount."
                )
        return Documents(
            torch.from_numpy(np.concatenate(pieces)),
            torch.from_numpy(np.cumsum([0, *map(len, pieces)])),
        )


def lm_loss(model: LacosBloomModel, ids: Tensor, bounds: Tensor) -> Tensor:
    """Mean cross-entropy of each token but a document's first, given those before it: () in nats."""
    states = model(ids[None], cu_seq_lens_q=bounds).last_hidden_state[0]
    predicts = torch.ones(len(ids), dtype=torch.bool)
    predicts[bounds[1:] - 1] = False
    return cross_entropy(states[predicts] @ model.word_embeddings.weight.T, ids.roll(-1)[predicts])


@torch.inference_mode()
def held_out_loss(model: LacosBloomModel, documents: Documents) -> float:
    """Loss on documents, in nats a token."""
    model.eval()
    total = count = 0.0
    for first in range(0, len(documents.bounds) - 1, 64):
        ids, bounds = documents.part(first, min(first + 64, len(documents.bounds) - 1))
        predicted = len(ids) - (len(bounds) - 1)
        total, count = total + float(lm_loss(model, ids, bounds)) * predicted, count + predicted
    model.train()
    return total / count


def base_path(folder: Path, size: str, amount: int, seed: int) -> Path:
    """Where a base lies."""
    return folder / f"{size}-{amount}-s{seed}"


class Run:
    """One size and one seed: the trunk with its optimiser, and the branches off it.

    Args:
        folder: Where bases and the trunk's state are written.
        size: A key of `SIZES`.
        seed: Of the weights and of the order of documents.
        text: The documents.
        tokenizer: Of all bases.
        tokens: The largest amount.
    """

    def __init__(
        self, folder: Path, size: str, seed: int, text: Text, tokenizer: PreTrainedTokenizerBase, tokens: int
    ) -> None:
        self.folder, self.size, self.seed, self.tokenizer = folder, size, seed, tokenizer
        self.state_path = folder / f"{size}-s{seed}.safetensors"
        self.held_out = text.documents(text.chosen, tokenizer, 0)
        self.documents = text.documents(text.order(seed), tokenizer, seed, tokens)
        ends = torch.arange(0, tokens + STEP_TOKENS, STEP_TOKENS)
        self.edges = torch.searchsorted(self.documents.bounds, ends)  # (steps + 1,) first document of each step
        hidden, layers = SIZES[size]
        self.lr = 3e-3 * (64 / hidden) ** 0.5
        torch.manual_seed(seed)
        self.model = LacosBloomModel(
            BloomConfig(
                architectures=["BloomForCausalLM"],
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                n_layer=layers,
                n_head=hidden // 32,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                use_cache=False,
            )
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.model.train()

    def load(self) -> None:
        """Take up the trunk's last state."""
        self.step = load_state(self.state_path, self.model, self.optimizer)

    def save(self) -> None:
        """Write the trunk's state, all at once."""
        save_state(self.state_path, self.model, self.optimizer, self.step)

    def advance(self, last: int, decay: bool = False) -> None:
        """Train up to step `last`, with the rate falling to 0 there if `decay`."""
        first, began, mean = self.step, time.monotonic(), 0.0
        while self.step < last:
            factor = (last - self.step) / (last - first) if decay else min(1.0, (self.step + 1) / WARMUP)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor
            ids, bounds = self.documents.part(*self.edges[self.step : self.step + 2].tolist())
            loss = lm_loss(self.model, ids, bounds)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            mean += loss.item()
            if (self.step - first) % 100 == 0:
                speed = (self.step - first) * STEP_TOKENS / (time.monotonic() - began)
                print(f"{self.size} s{self.seed} {self.step} loss {mean / 100:.3f} {speed:.0f} tokens/s", flush=True)
                mean = 0.0
            if not decay and self.step % SAVE_EVERY == 0:
                self.save()

    def finish(self, amount: int) -> None:
        """Write the base, all at once, with what is known of it."""
        target = base_path(self.folder, self.size, amount, self.seed)
        temporary = target.with_name(f".{target.name}")
        self.model.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        parameters = sum(p.numel() for p in self.model.parameters())
        facts = {
            "tokens": int(self.documents.bounds[self.edges[self.step]]),
            "held_out_loss": round(held_out_loss(self.model, self.held_out), 4),
            "parameters": parameters,
            "parameters_without_table": parameters - self.model.word_embeddings.weight.numel(),
        }
        (temporary / "language_model.json").write_text(json.dumps(facts) + "\n")
        temporary.rename(target)
        print(target.name, facts, flush=True)


def train_bases(
    text: Text, tokenizer: PreTrainedTokenizerBase, folder: Path, size: str, seed: int, amounts: Sequence[int]
) -> None:
    """Train the bases of one size and seed that are not there yet.

    Args:
        text: The documents.
        tokenizer: Their tokenizer.
        folder: Where bases are written.
        size: A key of `SIZES`.
        seed: Of weights and order.
        amounts: Tokens, ascending.
    """
    missing = [amount for amount in amounts if not base_path(folder, size, amount, seed).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, size, seed, text, tokenizer, max(amounts))
    if run.state_path.exists():
        run.load()
    for amount in missing:
        steps = amount // STEP_TOKENS
        branch = int(BRANCH * steps)
        if run.step > branch:
            raise SystemExit(f"{run.state_path} is beyond {amount:,} tokens: delete it to train that base.")
        run.advance(branch)
        run.save()
        run.advance(steps, decay=True)
        run.finish(amount)
        run.load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"), help="holds texts.parquet")
    parser.add_argument("--output", type=Path, default=Path("work/scaling"))
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--amounts", type=int, nargs="+", required=True, help="tokens")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    text = Text(args.work_dir)
    tokenizer = text.tokenizer(args.output / "tokenizer", args.vocabulary)
    train_bases(text, tokenizer, args.output / "bases", args.size, args.seed, sorted(args.amounts))


if __name__ == "__main__":
    main()
