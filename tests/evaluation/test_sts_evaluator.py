"""The evaluation as a sentence-transformers evaluator inside a training run."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation.evaluate import STSEvaluator


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_the_trainer_chooses_its_best_model_by_it(tmp_path, small):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    write_set(tmp_path / "data", "mine.en.dev.jsonl")
    evaluator = STSEvaluator(data_dir=tmp_path / "data")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="eval_sts_spearman",
        load_best_model_at_end=True,
        report_to=[],
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"anchor": ["the red cat", "a dog", "old house", "river"], "positive": list("abcd")})
    trainer = SentenceTransformerTrainer(
        model=small, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(small), evaluator=evaluator
    )
    trainer.train()
    seen = [entry["eval_sts_spearman"] for entry in trainer.state.log_history if "eval_sts_spearman" in entry]
    assert len(seen) >= 2
    assert trainer.state.best_metric == pytest.approx(max(seen))


def test_the_evaluator_looks_at_its_files_before_training(tmp_path):
    write_set(tmp_path, "mine.en.dev.jsonl", score=1)
    with pytest.raises(LacosError, match="nothing to correlate"):
        STSEvaluator(data_dir=tmp_path)
