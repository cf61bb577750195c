"""Retrieval: own files, MTEB's tasks and NanoBEIR by name; scores as sentence-transformers', not mixed with STS."""

import csv
import io
import json

import mteb
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sts_sets import step, write_set

from lacos_st.cli import main
from lacos_st.data.load import load_training_data
from lacos_st.data.retrieval import as_retrieval
from lacos_st.errors import LacosError
from lacos_st.evaluation.evaluate import STSEvaluator, evaluate
from lacos_st.evaluation.report import write_report
from lacos_st.evaluation.results import Evaluation
from lacos_st.evaluation.tables import csv_rows, text
from lacos_st.evaluation.tasks import plan

WORDS = ["card", "login", "parcel", "refund", "invoice", "password", "app", "branch", "limit", "fee"]


def write_tickets(path, rows=30):
    """Questions, each with an answer that shares two words with it, and one without; some share an answer."""
    lines = ["question,answer,negative"]
    for i in range(rows):
        a, b, c = WORDS[i % 10], WORDS[i // 3 % 10], WORDS[(i + 5) % 10]
        lines.append(f"my {a} and the {b} {i},we look at {a} with {b},there is no {c} {i % 7}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_scores_are_those_of_sentence_transformers(tmp_path, small, capsys):
    path = write_tickets(tmp_path / "tickets.en.test.csv")
    (found,) = evaluate({"m": small}, retrieval=path, progress=False).sets
    assert "corpus format" not in capsys.readouterr().err  # MTEB's progress bars
    task = as_retrieval(load_training_data(path))
    evaluator = InformationRetrievalEvaluator(task.queries, task.corpus, task.relevant)
    expected = {name.removeprefix("cosine_"): 100 * value for name, value in evaluator(small).items()}
    assert (found.name, found.languages, found.metric) == ("local-tickets/en", ("en",), "ndcg_at_10")
    assert found.score == pytest.approx(expected["ndcg@10"], abs=1e-3)
    names = {"mrr_at_10": "mrr@10", "hit_rate_at_1": "accuracy@1", "recall_at_10": "recall@10"}
    assert found.more == pytest.approx({ours: expected[theirs] for ours, theirs in names.items()}, abs=1e-3)
    assert found.count == len(found.each) == len(task.queries) == 30
    assert found.each.mean() == pytest.approx(found.score, abs=1e-3)
    low, high = found.interval
    assert low < found.score < high
    assert 0 < found.score < 100


def test_a_name_without_a_language_and_several_files(tmp_path, small):
    for name in ("tickets.csv", "faq.fr.csv", "faq.en.csv"):
        write_tickets(tmp_path / name, 12)
    files = sorted(tmp_path.iterdir())
    found = evaluate(small, retrieval=files, progress=False)
    assert found.names == ["local-faq/en", "local-faq/fr", "local-tickets/und"]
    kept = plan(None, ["fr"], retrieval=files)
    assert {(task.name, subset) for task in kept for subset in task.keep} == {
        ("local-faq", "fr"),
        ("local-tickets", "und"),  # nobody said that it is in another language
    }


def test_metrics_are_never_mixed(tmp_path, small):
    write_set(tmp_path / "sts", "mine.en.test.jsonl")
    write_tickets(tmp_path / "tickets.en.csv")
    after = SentenceTransformer(modules=[*small])
    options = {"data_dir": tmp_path / "sts", "retrieval": tmp_path / "tickets.en.csv", "output": tmp_path / "out"}
    first = evaluate({"before": small}, progress=False, **options)
    before = first.models[0]
    step(after)
    found = evaluate({"before": after}, progress=False, **options)
    assert {mean.group: mean.sets for mean in found.means(found.models[0])} == {
        "BLOOM languages": 1, "all STS sets": 1, "nDCG@10": 1,
    }  # fmt: skip
    both = Evaluation.load(tmp_path / "out")
    assert len(both.models) == 2
    assert both.models.index(before) in (0, 1)
    differences = both.compare(*both.models)
    assert set(differences) >= {"local-mine/en", "local-tickets/en", "mean: nDCG@10", "mean: all STS sets"}
    shown = text(both)
    spearman, ndcg, means = shown.split("\n\n")[:3]
    assert spearman.startswith("Spearman x 100")
    assert "tickets" not in spearman
    assert ndcg.startswith("nDCG@10 x 100, with 95 % interval")
    assert [line.split()[0] for line in ndcg.splitlines()[3:]] == ["MRR@10", "accuracy@1", "recall@10"]
    assert "mine" not in ndcg
    assert "nDCG@10" in means
    rows = [row for row in csv.DictReader(io.StringIO(csv_rows(both))) if row["set"] == "local-tickets/en"]
    assert {row["metric"] for row in rows} == {"ndcg_at_10", "mrr_at_10", "hit_rate_at_1", "recall_at_10"}
    assert {row["pairs"] for row in rows} == {"30"}
    page = write_report(both, tmp_path / "r.html")[0].read_text(encoding="utf-8")
    assert "1 set, 40 pairs" in page
    assert "nDCG@10, × 100: 1 set, 30 queries" in page
    assert "<section>" in page


def test_a_page_of_retrieval_alone_has_no_empty_plots(tmp_path, small):
    found = evaluate(small, retrieval=write_tickets(tmp_path / "tickets.csv"), progress=False)
    written = write_report(found, tmp_path / "r.html")
    page = written[0].read_text(encoding="utf-8")
    assert "<section hidden>" in page
    assert "<td>accuracy@1</td>" in page
    assert "Spearman correlation of the cosine" not in page
    assert len(written) == 1


def test_a_second_run_measures_nothing_again_and_a_changed_file_anew(tmp_path, small, monkeypatch):
    path = write_tickets(tmp_path / "tickets.csv")
    options = {"retrieval": [path], "output": tmp_path / "out", "progress": False}
    (first,) = evaluate({"m": small}, **options).sets
    with monkeypatch.context() as patch:
        patch.setattr(small, "encode", lambda *a, **k: pytest.fail("it was encoded"))
        (again,) = evaluate({"m": small}, **options).sets
    assert (again.score, again.more) == (first.score, first.more)
    np.testing.assert_array_equal(again.each, first.each)
    write_tickets(path, rows=20)
    (changed,) = evaluate({"m": small}, **options).sets
    assert changed.count == 20


@pytest.fixture
def nano(tmp_path, monkeypatch):
    """A data set in the Hub's layout on this disk, in the place of NanoSciFact's."""
    task = as_retrieval(load_training_data(write_tickets(tmp_path / "tickets.csv")))
    folder = tmp_path / "scifact"
    parts = {
        "corpus": [{"_id": key, "text": value, "title": ""} for key, value in task.corpus.items()],
        "queries": [{"_id": key, "text": value} for key, value in task.queries.items()],
        "default": [
            {"query-id": query, "corpus-id": document, "score": 1}
            for query, right in task.relevant.items()
            for document in right
        ],
    }
    configs = ["configs:"]
    for name, rows in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        configs += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", *configs, "---", ""]), encoding="utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cls = type(mteb.get_task("NanoSciFactRetrieval"))
    here = {"path": str(folder), "revision": "main"}
    monkeypatch.setattr(cls, "metadata", cls.metadata.model_copy(update={"dataset": here}))
    return tmp_path / "tickets.csv"


def test_nanobeir_by_name_and_what_cannot_be_had_is_listed(nano, small):
    assert len(plan(["NanoBEIR"])) == len(mteb.get_benchmark("NanoBEIR").tasks) == 13
    found = evaluate({"m": small}, tasks="nanobeir", progress=False)
    assert [(r.name, r.split, r.languages) for r in found.sets] == [("NanoSciFactRetrieval", "train", ("en",))]
    assert len(found.missing) == 12
    assert "sentence1" not in found.missing[0]
    (own,) = evaluate({"m": small}, retrieval=nano, progress=False).sets
    assert found.sets[0].score == pytest.approx(own.score, abs=1e-3)
    assert found.sets[0].more == pytest.approx(own.more, abs=1e-3)
    assert found.sets[0].is_test


def test_mistakes_say_what_to_do(tmp_path, small, capsys, tiny_bloom):
    with pytest.raises(LacosError, match="NanoSciFactRetrieval has no split to choose by"):
        plan(["NanoSciFactRetrieval"], split="dev")
    with pytest.raises(LacosError, match="NanoSciFactRetrieval is none: use sentence-transformers'"):
        STSEvaluator(tasks=["NanoSciFactRetrieval"], split="test")
    (tmp_path / "same.csv").write_text("anchor,positive\na,a\nb,b\n")
    with pytest.raises(LacosError, match=r"same\.csv: every query of it is among its own answers"):
        evaluate(small, retrieval=tmp_path / "same.csv", progress=False)
    (tmp_path / "x").mkdir()
    files = [write_tickets(tmp_path / "t.csv"), write_tickets(tmp_path / "x" / "t.csv")]
    with pytest.raises(LacosError, match=r"would be one set, 't': rename one"):
        plan(None, retrieval=files)
    write_set(tmp_path / "sts", "t.en.test.jsonl")
    with pytest.raises(LacosError, match="Two sets are called 't'"):
        plan(None, data_dir=tmp_path / "sts", retrieval=files[:1])
    (tmp_path / "bad.csv").write_text("query,positive\nwhere?,here\nwhen?,\n")
    for given, said in (
        ("missing.csv", "--retrieval missing.csv is no file"),
        (str(tmp_path / "bad.csv"), "bad.csv:3"),
    ):
        assert main(["evaluate", str(tiny_bloom), "--retrieval", given]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "training can skip" in told or "is no file" in told
