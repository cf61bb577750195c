"""Training files of every format, and what loading makes of them."""

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from lacos_st.data.load import load_training_data

PAIRS = [("A dog runs.", "An animal moves."), ("Le chat dort.", "Un animal dort."), ("吉他", "乐器")]
NLI = [
    ("p1", "e1", "entailment"),
    ("p1", "n1", "neutral"),
    ("p2", "e2", "entailment"),
    ("p1", "c1", "contradiction"),
    ("p1", "e3", "entailment"),
    ("p1", "c2", "contradiction"),
    ("p1", "e4", "entailment"),
    ("p3", "c3", "contradiction"),
]


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def table(path: Path, header: list[str], rows: list) -> Path:
    """Write rows in the format that the name says."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), path)
        return path
    if kind == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False) for row in rows]
        return write(path, "\n".join(lines) + "\n")
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t" if kind == ".tsv" else ",").writerows([header, *rows])
    return write(path, buffer.getvalue())


def load_and_report(sources, **options):
    reports = []
    data = load_training_data(sources, on_report=reports.append, **options)
    return data, *reports


def texts(data: datasets.Dataset) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in data]
