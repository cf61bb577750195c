"""What 8 bits cost: one trained adapter over its base in 8 bits and in full precision, on the same sets.

    python full_precision.py BASE MODEL STS --output DIRECTORY

BASE is the directory that MODEL was trained over, in the precision that it was published in.
"""

import argparse
from pathlib import Path

from lacos_st import LacosSentenceTransformer, evaluate
from lacos_st.evaluation.tables import text


def main() -> None:
    """Evaluate both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("model", type=Path)
    parser.add_argument("sets", help="directory of STS files (docs/evaluation.md)")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    rounded = LacosSentenceTransformer(arguments.model)
    options = {"quantization": "none", "max_seq_length": rounded.max_seq_length}
    full = LacosSentenceTransformer(arguments.base, pooling=rounded.pooling.pooling_mode, transformer_options=options)
    full.load_adapter(str(arguments.model / "adapter"))
    models = {"8 bits": rounded, "full precision": full.eval()}
    print(text(evaluate(models, data_dir=arguments.sets, output=arguments.output, baseline=False)))


if __name__ == "__main__":
    main()
