"""A file of texts becomes a file of embeddings, in bounded memory; the same call after a kill goes on where it was.

Then the file is opened without being read into memory and searched. `lacos-st encode` is the same on a command line.
"""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet

from lacos_st import LacosSentenceTransformer, encode_file
from lacos_st.embedded.names import sample_path


def main(folder: Path) -> None:
    with gzip.open(sample_path("es-train"), "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["anchor"] for line, _ in zip(lines, range(1000), strict=False)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"es-{i}", "text": text}) + "\n" for i, text in enumerate(texts)))

    model = LacosSentenceTransformer("lacos-bloom")
    for name, precision in [("corpus.npy", "float32"), ("corpus.parquet", "int8"), ("bits.parquet", "ubinary")]:
        result = encode_file(model, corpus, folder / name, precision=precision, show_progress=False)
        size = result.output.stat().st_size
        print(f"{name:<15} {precision:<8} {result.rows} rows of {result.dimension}, {size:,} bytes")

    embeddings = np.load(folder / "corpus.npy", mmap_mode="r")
    ids = pyarrow.parquet.read_table(folder / "corpus.parquet", columns=["id"])["id"].to_pylist()
    for query in ["A dog runs", "Someone plays music"]:
        scores = embeddings @ model.encode_query(query)
        print(f"\n{query}")
        for i in np.argsort(-scores)[:3]:
            print(f"  {scores[i]:.2f}  {ids[i]}  {texts[i]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
