"""Clusters of sentences in four languages: what belongs together is found whatever language it is in."""

from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from lacos_st import LacosSentenceTransformer

SENTENCES = {
    "music": [
        "A man is playing the guitar.",
        "Un hombre toca la guitarra.",
        "Un homme joue du piano.",
        "Uma mulher canta uma canção.",
        "The band plays a song.",
    ],
    "animals": [
        "Two dogs are running in the snow.",
        "Dos perros corren por la nieve.",
        "Un chien court dans la neige.",
        "Um cachorro corre na neve.",
        "A dog runs through the field.",
    ],
    "food": [
        "A woman is slicing onions.",
        "Una mujer corta cebollas.",
        "Une femme coupe des tomates.",
        "Uma mulher corta uma cebola.",
        "Someone is cutting a tomato.",
    ],
    "football": [
        "Children are playing football.",
        "Los niños juegan al fútbol.",
        "Les enfants jouent au football.",
        "As crianças jogam futebol.",
        "The players kick the ball.",
    ],
}


def main() -> None:
    sentences = [text for texts in SENTENCES.values() for text in texts]
    topics = [topic for topic, texts in SENTENCES.items() for _ in texts]
    embeddings = LacosSentenceTransformer("lacos-bloom").encode(sentences)
    clusters = KMeans(len(SENTENCES), n_init=10, random_state=0).fit_predict(embeddings)
    for number in range(len(SENTENCES)):
        print(f"\ncluster {number + 1}")
        for text, cluster in zip(sentences, clusters, strict=True):
            if cluster == number:
                print(f"  {text}")
    agreement = adjusted_rand_score(topics, clusters)
    print(f"\nAgreement with the topics (1 is all of it, 0 is chance): {agreement:.2f}")


if __name__ == "__main__":
    main()
