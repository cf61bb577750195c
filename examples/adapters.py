"""Two adapters over one base, switched while the model stays loaded: nearness by topic, and nearness by opinion.

"The soup was delicious." is near to "The soup was awful." for who asks about soup, and far for who asks how guests
liked it. Each adapter learns one of these from a few hundred pairs; both are saved with the model.
"""

import itertools
import random
import tempfile
import time

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from lacos_st import LacosSentenceTransformer, MaskedMultipleNegativesRankingLoss

TOPICS = ["soup", "room", "train", "concert", "hotel", "film", "phone", "teacher", "beach", "book"]
OPINIONS = {
    "good": ["delightful", "excellent", "wonderful", "really good", "better than expected"],
    "bad": ["awful", "terrible", "a disappointment", "really bad", "worse than expected"],
}
UNSEEN_TOPICS, UNSEEN = ["garden", "lesson", "car"], {"good": ["great", "lovely"], "bad": ["horrible", "poor"]}


def sentences(topics: list[str], opinions: dict[str, list[str]]) -> list[dict[str, str]]:
    return [
        {"topic": topic, "opinion": opinion, "text": f"The {topic} was {word}."}
        for topic, (opinion, words) in itertools.product(topics, opinions.items())
        for word in words
    ]


def pairs(rows: list[dict[str, str]], by: str) -> Dataset:
    """An anchor, a sentence that is like it in `by` and unlike it in the other, and one the other way round."""
    chance, found = random.Random(0), []
    other = "opinion" if by == "topic" else "topic"
    for row in rows * 8:
        near = [r["text"] for r in rows if r[by] == row[by] and r[other] != row[other]]
        far = [r["text"] for r in rows if r[by] != row[by] and r[other] == row[other]]
        found.append({"anchor": row["text"], "positive": chance.choice(near), "negative": chance.choice(far)})
    return Dataset.from_list(found)


def learn(model: LacosSentenceTransformer, by: str) -> None:
    model.add_lora(rank=8, name=by)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder, max_steps=30, per_device_train_batch_size=32, learning_rate=5e-3, warmup_steps=3,
            save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        loss = MaskedMultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model, arguments, pairs(sentences(TOPICS, OPINIONS), by), loss=loss).train()


def agreement(model: LacosSentenceTransformer, by: str) -> float:
    """How often the nearest sentence has the same topic, or opinion; of words that no adapter has seen."""
    rows = sentences(UNSEEN_TOPICS, UNSEEN)
    embeddings = model.encode([row["text"] for row in rows])
    near = model.similarity(embeddings, embeddings).numpy()
    np.fill_diagonal(near, -1)
    return float(np.mean([row[by] == rows[i][by] for row, i in zip(rows, near.argmax(axis=1), strict=True)]))


def main() -> None:
    model = LacosSentenceTransformer("bloom-mini")
    learn(model, "topic")
    learn(model, "opinion")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = LacosSentenceTransformer(folder)
    query, choices = "The garden was lovely.", ["The garden was horrible.", "The lesson was great."]
    for name in ("topic", "opinion"):
        start = time.perf_counter()
        model.set_adapter(name)
        milliseconds = 1000 * (time.perf_counter() - start)
        scores = model.similarity(model.encode([query]), model.encode(choices))[0]
        print(f"\nadapter {name} (switched in {milliseconds:.1f} ms): {query}")
        for score, choice in sorted(zip(scores.tolist(), choices, strict=True), reverse=True):
            print(f"  {score:.2f}  {choice}")
        same = ", ".join(f"{by} {agreement(model, by):.0%}" for by in ("topic", "opinion"))
        print(f"  the nearest sentence has the same {same}")


if __name__ == "__main__":
    main()
