"""Paraphrase mining: of a thousand sentences in three languages, the pairs that say the same.

The sentences are STS17's, in English, Spanish and Arabic. Where annotators have judged a pair, their mark from 0 to 5
stands beside it.
"""

import gzip
import json

from sentence_transformers.util import paraphrase_mining

from lacos_st import LacosSentenceTransformer
from lacos_st.embedded.names import sample_path


def main() -> None:
    marks, language = {}, {}
    for path in sorted(sample_path("sts17").glob("*.jsonl.gz")):
        languages = path.name.split(".")[1].split("-")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                texts = (row["sentence1"], row["sentence2"])
                marks[frozenset(texts)] = row["score"]
                language.update(zip(texts, languages, strict=True))
    sentences = sorted(language)
    found = paraphrase_mining(LacosSentenceTransformer("lacos-bloom"), sentences, top_k=20, max_pairs=20_000)
    print(f"{len(sentences)} sentences, {len(sentences) * (len(sentences) - 1) // 2:,} pairs")

    pairs = [(cosine, sentences[i], sentences[j]) for cosine, i, j in found]
    across = [pair for pair in pairs if language[pair[1]] != language[pair[2]]]
    for title, chosen in [("nearest", pairs), ("nearest in two languages", across)]:
        print(f"\n{title}\ncosine  mark")
        for cosine, one, other in chosen[:6]:
            print(f"  {cosine:.2f}  {marks.get(frozenset((one, other)), ''):>4}  {one}  |  {other}")

    judged = [marks[key] for _, *texts in pairs[:200] if (key := frozenset(texts)) in marks]
    every, best = sum(marks.values()) / len(marks), sum(judged) / len(judged)
    print(f"\nMean mark of all judged pairs: {every:.1f}; of the {len(judged)} among the nearest 200: {best:.1f}")


if __name__ == "__main__":
    main()
