"""`SentenceTransformerTrainer` with a Matryoshka loss: embeddings whose first numbers are good embeddings too.

The score is Spearman's correlation x 100 on STS17 English, with embeddings cut to fewer and fewer numbers, before and
after two dozen steps on English sentences that follow from each other.
"""

import tempfile

import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense

from lacos_st import LacosSentenceTransformer, MaskedMultipleNegativesRankingLoss
from lacos_st.embedded.names import sample_path

SIZES = [512, 64, 16]


def score(model: LacosSentenceTransformer, size: int) -> float:
    pairs = load_dataset("json", data_files=str(sample_path("sts17") / "sts17.en-en.test.jsonl.gz"), split="train")
    evaluator = EmbeddingSimilarityEvaluator(
        pairs["sentence1"], pairs["sentence2"], pairs["score"], truncate_dim=size, main_similarity="cosine"
    )
    return 100 * evaluator(model)["spearman_cosine"]


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
                max_steps=32,
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
        print(f"{size:>7}  {old:6.2f}  {new:6.2f}")


if __name__ == "__main__":
    main()
