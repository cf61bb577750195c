"""Trainings that `test_several_processes.py` runs in one process and in two, over gloo, with the same global batch.

    python tests/training/two_trainings.py DIRECTORY BASE PORT

One process imports everything once, and forks. What it trains lies in DIRECTORY afterwards.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss
from lacos_st.training.train import TrainingInterrupted, train

WORDS = [f"{colour} {thing}" for colour in ("red", "old", "small") for thing in ("man", "dog", "house", "river")]
# An anchor stands in several rows, so a batch of eight holds it in both processes. 40 and 26 rows: tails of 0 and 2.
TRIPLETS = [
    (f"the {WORDS[i % 6]} {WORDS[i % 5]}", f"a {WORDS[i % 6]} is {WORDS[i % 5]} {i}", f"no {WORDS[i % 12]} {i}")
    for i in range(40)
]
PAIRS = [(f"un {WORDS[i % 4]} rouge {i}", f"le {WORDS[i % 4]} est rouge {i}") for i in range(26)]
HELD_OUT = [(f"one {word}", f"{word} it is") for word in WORDS]  # a batch of 8, and one of 4


def write_data(directory: Path) -> None:
    for name, head, rows in (
        ("triplets", "anchor,positive,negative", TRIPLETS),
        ("pairs", "anchor,positive", PAIRS),
        ("held_out", "anchor,positive", HELD_OUT),
    ):
        (directory / f"{name}.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n", encoding="utf-8")


def recipe(directory: Path, base: str, name: str, **options) -> LacosConfig:
    return LacosConfig(
        **{
            "base": base,
            "train_data": [str(directory / "triplets.csv"), str(directory / "pairs.csv")],
            "eval_data": [str(directory / "held_out.csv")],
            "output": str(directory / name),
            "quantization": "none",
            "optimizer": "adamw_torch",
            "bf16": False,
            "batch_size": 8,
            "epochs": 2,
            "eval_steps": 4,
            "logging_steps": 1,
            "lora_rank": 4,
            "lora_dropout": 0.0,
            "learning_rate": 1e-3,
            **options,
        }
    )


CASES = {
    "plain": {},
    "int8_cached": {"quantization": "int8", "optimizer": "adamw_8bit", "mini_batch_size": 2, "symmetric_loss": True},
}


def with_the_trainer(base: str) -> dict[str, torch.Tensor]:
    """sentence-transformers' own trainer, used directly: 20 steps of plain gradient descent in fp32."""
    torch.manual_seed(0)
    model = LacosSentenceTransformer(base, transformer_options={"quantization": "none"}).add_lora(rank=4, dropout=0.0)
    processes = PartialState(cpu=True).num_processes
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=20,
        per_device_train_batch_size=8 // processes,
        optim="sgd",
        learning_rate=0.1,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), zip(*TRIPLETS, strict=True), strict=True)))
    loss = MaskedMultipleNegativesRankingLoss(model, gather_across_devices=processes > 1)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


class InterruptOne(TrainerCallback):
    """Ctrl-C reaches the second process alone, in its third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGINT)


class PowerCut(TrainerCallback):
    """Both processes end in the second epoch of nine steps."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 13:
            raise SystemExit("power cut")


def told(function) -> str:
    """Which error comes."""
    try:
        function()
    except (LacosError, TrainingInterrupted) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def run(directory: Path, base: str) -> None:
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    for name, options in CASES.items():
        train(recipe(directory, base, f"two_{name}", **options))
    try:
        train(recipe(directory, base, "cut", lora_dropout=0.1), callbacks=[PowerCut()])
    except SystemExit:
        train(recipe(directory, base, "cut", lora_dropout=0.1))
    train(recipe(directory, base, "uncut", lora_dropout=0.1))
    torch.save(with_the_trainer(base), directory / f"trainer.{rank}")
    errors = [
        told(lambda: train(recipe(directory, base, "halves"), callbacks=[InterruptOne()])),
        told(lambda: train(recipe(directory, base, "missing", train_data=[str(directory / "missing.csv")]))),
        told(lambda: train(recipe(directory, base, "odd", batch_size=9))),
        told(lambda: train(recipe(directory, base, "two_plain"))),
    ]
    (directory / f"errors.{rank}").write_text("\n".join(errors), encoding="utf-8")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3]}
    child = os.fork()
    os.environ |= {"RANK": str(int(child == 0)), "LOCAL_RANK": str(int(child == 0))}
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except BaseException:
        os.kill(child or os.getppid(), signal.SIGTERM)  # as a launcher does
        raise
    finally:
        if child == 0:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
