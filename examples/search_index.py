"""Search over an index: what smaller embeddings and faster indexes cost, in recall, speed and bytes.

    python examples/search_index.py                               # sentences that come with the package, half a minute
    python examples/search_index.py --corpus a.txt b.jsonl.gz     # your own: every text in them is a sentence

Some sentences are queries and the rest is the corpus. Recall@10 is the part of the ten nearest by exact search that a
form finds. Queries are asked one at a time on one thread, as a server would. What counts is that thread's processor
time, and of three rounds the fastest, so that a busy machine disturbs little.
Needs faiss: pip install "lacos-st[examples]".
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from sentence_transformers import quantize_embeddings
from sentence_transformers.util.quantization import semantic_search_faiss

from lacos_st import LacosSentenceTransformer
from lacos_st.data.readers import open_file
from lacos_st.embedded.names import sample_path

K = 10
Search = Callable[[np.ndarray], np.ndarray]  # (1, dimension) -> positions of the nearest, the nearest first


@dataclass
class Form:
    """An index and what it holds: bytes of a vector in memory, and on disk beside it."""

    name: str
    search: Search
    memory: float
    disk: int = 0


def forms(corpus: np.ndarray) -> list[Form]:
    """The same embeddings, (rows, dimension) float32 of length 1, in each form."""
    rows, dimension = corpus.shape
    inner, byte = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit

    def filled(index: faiss.Index, name: str, columns: int = dimension) -> Form:
        vectors = cut(corpus, columns)
        index.train(vectors)  # an 8-bit index learns the range of each dimension
        index.add(vectors)
        size = len(faiss.serialize_index(index)) / rows
        return Form(name, lambda query: index.search(cut(query, columns), K)[1][0], size)

    graph, small_graph = faiss.IndexHNSWFlat(dimension, 16, inner), faiss.IndexHNSWSQ(dimension, byte, 16, inner)
    graph.hnsw.efSearch = small_graph.hnsw.efSearch = 64  # how many candidates a search keeps: recall against speed

    codes = quantize_embeddings(corpus, "ubinary")  # the sign of each number: a bit
    bits = faiss.IndexBinaryFlat(8 * codes.shape[1])
    bits.add(codes)
    bit_size = len(faiss.serialize_index_binary(bits)) / rows
    ranges = np.vstack([corpus.min(axis=0), corpus.max(axis=0)])
    small = quantize_embeddings(corpus, "int8", ranges=ranges)
    steps = (ranges[1] - ranges[0]) / 255

    def by_bits(query: np.ndarray, count: int) -> np.ndarray:
        return bits.search(quantize_embeddings(query, "ubinary"), count)[1][0]

    def by_own_bits(query: np.ndarray) -> np.ndarray:
        hits, _ = semantic_search_faiss(
            query, corpus_index=bits, corpus_precision="ubinary", top_k=K, rescore_multiplier=8
        )
        return np.array([hit["corpus_id"] for hit in hits[0]])

    def by_bits_then(vectors: Callable[[np.ndarray], np.ndarray], query: np.ndarray) -> np.ndarray:
        candidates = by_bits(query, 8 * K)
        return candidates[np.argsort(-(vectors(candidates) @ query[0]))[:K]]

    return [
        filled(faiss.IndexFlatIP(dimension), "float32, exact"),
        filled(graph, "float32, HNSW"),
        filled(faiss.IndexScalarQuantizer(dimension, byte, inner), "int8"),
        filled(small_graph, "int8, HNSW"),
        Form("binary", lambda query: by_bits(query, K), bit_size),
        Form("binary, 80 rescored by their bits", by_own_bits, bit_size),
        Form(
            "binary, 80 rescored with int8",
            lambda query: by_bits_then(lambda at: ranges[0] + (small[at] + 128.5) * steps, query),
            bit_size,
            small.shape[1],
        ),
        Form(
            "binary, 80 rescored with float32",
            lambda query: by_bits_then(lambda at: corpus[at], query),
            bit_size,
            4 * dimension,
        ),
        filled(faiss.IndexFlatIP(dimension // 2), f"float32, first {dimension // 2}", dimension // 2),
        filled(faiss.IndexFlatIP(dimension // 4), f"float32, first {dimension // 4}", dimension // 4),
    ]


def cut(embeddings: np.ndarray, columns: int) -> np.ndarray:
    """The first columns, of length 1 again."""
    first = np.ascontiguousarray(embeddings[:, :columns])
    return first / np.linalg.norm(first, axis=1, keepdims=True)


def compare(corpus: np.ndarray, queries: np.ndarray) -> list[dict]:
    """Recall@10, seconds a query, and bytes a vector of each form; the first is exact search."""
    built = forms(corpus)
    seconds, found = {form.name: np.inf for form in built}, {}
    for _ in range(3):
        for form in built:
            start = time.thread_time()
            found[form.name] = [form.search(query[None]) for query in queries]
            seconds[form.name] = min(seconds[form.name], (time.thread_time() - start) / len(queries))
    exact = found[built[0].name]

    def recall(form: Form) -> float:
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found[form.name], exact, strict=True)]))

    return [
        {"name": form.name, "recall": recall(form), "seconds": seconds[form.name],
         "memory": round(form.memory), "disk": form.disk}
        for form in built
    ]  # fmt: skip


def table(results: list[dict]) -> str:
    lines = ["| form | recall@10 | queries/s | times exact | bytes a vector | on disk |"]
    lines.append("| --- " + "| ---: " * 5 + "|")
    for row in results:
        rate, factor = 1 / row["seconds"], results[0]["seconds"] / row["seconds"]
        lines.append(
            f"| {row['name']} | {row['recall']:.3f} | {rate:,.0f} | {factor:.1f} | {row['memory']:,} | "
            f"{row['disk'] or ''} |"
        )
    return "\n".join(lines)


def read(path: Path) -> list[str]:
    """All texts of a file: .txt (a line is one), .csv, .jsonl (each also .gz) or .parquet."""
    return [text for row in open_file(path).rows() for text in row.values.values() if isinstance(text, str)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", type=Path, help="files; default: the package's samples")
    parser.add_argument("--model", default="lacos-bloom")
    parser.add_argument("--rows", type=int, default=6000, help="most sentences of the corpus")
    parser.add_argument("--queries", type=int, default=200, help="sentences that are asked for")
    chosen = parser.parse_args()
    files = chosen.corpus or [sample_path("across-train"), sample_path("es-train"), sample_path("pt-train")]
    texts = list(dict.fromkeys(text for path in files for text in read(path) if text))
    random.Random(0).shuffle(texts)
    asked, texts = texts[: chosen.queries], texts[chosen.queries : chosen.queries + chosen.rows]

    faiss.omp_set_num_threads(1)
    model = LacosSentenceTransformer(chosen.model)
    corpus, queries = (model.encode(part, normalize_embeddings=True) for part in (texts, asked))
    print(f"{len(texts):,} sentences, {len(asked)} queries, {corpus.shape[1]} dimensions\n")
    print(table(compare(corpus, queries)))

    index = faiss.IndexScalarQuantizer(corpus.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(corpus)
    index.add(corpus)
    for query in ["Where is the train station?", "El perro duerme.", "I do not like coffee."]:
        scores, found = index.search(model.encode_query([query], normalize_embeddings=True), 3)
        print(f"\n{query}")
        for score, i in zip(scores[0], found[0], strict=True):
            print(f"  {score:.2f}  {texts[i]}")


if __name__ == "__main__":
    main()
