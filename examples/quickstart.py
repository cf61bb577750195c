"""Embeddings of sentences in five languages, and a search across them: `python examples/quickstart.py [MODEL]`."""

import sys

from lacos_st import LacosSentenceTransformer

SENTENCES = [
    "A man is playing the guitar on stage.",
    "Deux chiens courent dans la neige.",
    "Una mujer está cortando cebollas.",
    "孩子们在公园里踢足球。",
    "The government raised taxes on fuel.",
    "Il pleut depuis trois jours.",
    "El tren a Madrid sale a las ocho.",
    "她在读一本关于历史的书。",
]
QUERIES = ["Someone is making music", "Dogs are running", "Children play football", "A woman is cooking"]


def main(name: str) -> None:
    model = LacosSentenceTransformer(name)
    embeddings = model.encode_document(SENTENCES)
    print(f"{name}: {len(embeddings)} sentences, {embeddings.shape[1]} numbers each")
    scores = model.similarity(model.encode_query(QUERIES), embeddings)
    for query, row in zip(QUERIES, scores, strict=True):
        print(f"\n{query}")
        for index in row.argsort(descending=True)[:3].tolist():
            print(f"  {row[index]:.2f}  {SENTENCES[index]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lacos-bloom")
