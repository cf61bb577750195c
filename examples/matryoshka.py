"""`SentenceTransformerTrainer` with a Matryoshka loss: embeddings whose first numbers are good embeddings too.

The model learns from two dozen batches of English triplets: a sentence, one that follows from it, one that contradicts
it. How well it then tells the two apart is measured with embeddings cut to fewer and fewer numbers.
"""

import tempfile

import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense

from lacos_st import LacosSentenceTransformer, MaskedMultipleNegativesRankingLoss
from lacos_st.embedded.names import sample_path

SIZES = [512, 64, 16]


def score(model: LacosSentenceTransformer, size: int) -> float:
    """In how many of a hundred held-out triplets is the anchor nearer to what follows from it than to what does not?"""
    held_out = load_dataset("json", data_files=str(sample_path("nli-dev")), split="train")
    columns = (held_out[name] for name in ("anchor", "positive", "negative"))
    return 100 * TripletEvaluator(*columns, truncate_dim=size)(model)["cosine_accuracy"]


def main() -> None:
    model = LacosSentenceTransformer("bloom-mini").add_lora(rank=8)
    size = model.get_embedding_dimension()
    head = Dense(size, size, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.eye_(head.linear.weight)  # begins as no change, and learns which directions come first
    model.append(head)
    before = [score(model, size) for size in SIZES]
    triplets = load_dataset("json", data_files=str(sample_path("nli-train")), split="train").shuffle(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(
                folder,
                max_steps=24,
                per_device_train_batch_size=32,
                learning_rate=1e-3,
                warmup_steps=3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            triplets,
            loss=MatryoshkaLoss(model, MaskedMultipleNegativesRankingLoss(model), matryoshka_dims=SIZES),
        ).train()
    after = [score(model, size) for size in SIZES]
    print("numbers  before   after")
    for size, old, new in zip(SIZES, before, after, strict=True):
        print(f"{size:>7}  {old:6.1f}  {new:6.1f}")


if __name__ == "__main__":
    main()
