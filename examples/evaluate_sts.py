"""MTEB's scores without a network: the embedded base and its LACoS adapter on four test sets of STS17.

The sets come with the package. `data_dir=` takes a directory of your own (docs/evaluation.md), and task names of MTEB
are fetched from the Hub. The intervals and the paired test say how much of a difference is chance.
"""

from lacos_st import evaluate
from lacos_st.evaluation.tables import text


def main() -> None:
    found = evaluate(["bloom-mini", "lacos-bloom"], tasks="sts-sample", progress=False)
    print(text(found))


if __name__ == "__main__":
    main()
