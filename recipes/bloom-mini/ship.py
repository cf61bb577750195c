"""Last stage: put a trained base into the package's assets, packed in 8 bits, the table in 4, with its model card."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lacos_st.lexical import LexicalSketch
from transformers import AutoTokenizer, BloomConfig

from lacos_st import LacosSentenceTransformer
from lacos_st.artifact import SKETCH
from lacos_st.embedded import ASSETS, pack

KEEP = {"bos_token", "eos_token", "unk_token", "pad_token", "padding_side", "truncation_side", "model_max_length"}

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: feature-extraction
language: [{languages}]
---
# bloom-mini

A small multilingual BLOOM for sentence embeddings: {layers} layers of {hidden}, {heads} heads, {vocabulary:,}
byte-level BPE entries, {parameters:.1f} million parameters in 8 bits (the table, inside the package, in 4). Tokens see
both sides (`is_causal: false`, which transformers reads from 5.2 on), with ALiBi.
It is the base that LACoS adapts: `lacos-bloom` is this model with a LoRA adapter.

A sentence embedding, of {width} dimensions, is a fixed random layer with ReLU over every token's state (`1_Dense/`),
the mean of all tokens (`2_Pooling/`), and a layer norm that centres it and adds some of what sentences have in common
(`3_LayerNorm/`); the tokenizer appends `</s>`.
Behind it `lacos_st` puts {sketch} more (`lexical/`): which tokens the sentence has, each as loud as it is rare in the
sentence's language, with a share in the cosine that the language has, from {least} (English) to {most}.
The last two dimensions of a state are silent: the model keeps there what a token should not say.

Trained by `recipes/bloom-mini/`: token vectors first, then layers, distilled from two teachers.
all-MiniLM-L6-v2 (Apache-2.0) reads English: a sentence and its translations are drawn to its embedding of the English.
multilingual-e5-small (MIT) reads sentences and words of every language as they are; at the end words, of one token or
several, are drawn to those of which it says the same, and near sentences are put in the order that it gives them.
Both were trained by their authors, under the terms that their model cards give.

Not a language model to generate with; sentences above 48 tokens were not seen in training; languages with few training
sentences (table below) are served by what they share with others.

## Training text

Every sentence that occurs in an STS set of the project's evaluation data (any split, any language; compared after
lower-casing and removing punctuation) was dropped: {dropped:,} of them. The weights contain no text; the licences
below are those of the text they were trained on. **Non-commercial sources: {noncommercial}.** Leave them out with
`collect.py --commercial-only` and train again where that matters to you.

| source | sentences | licence |
|---|---|---|
{sources}

Sentences per language: {counts}.
"""


def card(config: BloomConfig, width: int, sketch: LexicalSketch, parameters: int, report: dict) -> str:
    sources = report["sources"]
    return CARD.format(
        languages=", ".join(sorted({lang.split("-")[0] for lang, _ in report["sentences"]})),
        layers=config.n_layer,
        hidden=config.hidden_size,
        heads=config.n_head,
        vocabulary=config.vocab_size,
        width=width,
        sketch=sketch.dimension,
        least=f"{sketch.shares.min():.2f}",
        most=f"{sketch.shares.max():.2f}",
        parameters=parameters / 1e6,
        dropped=sum(source["dropped_sts"] for source in sources.values()),
        noncommercial=", ".join(name for name, s in sources.items() if "non-commercial" in s["licence"]) or "none",
        sources="\n".join(f"| {name} | {s['sentences']:,} | {s['licence']} |" for name, s in sources.items()),
        counts=", ".join(f"{lang} {n:,}" for lang, n in report["sentences"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="output of distil.py")
    parser.add_argument("--output", type=Path, default=ASSETS / "bloom-mini")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"), help="where sources.json lies")
    args = parser.parse_args()
    if not (args.model / "1_Dense").is_dir():
        parser.error(f"{args.model} is no checkpoint with layers: give an output of `distil.py deep`.")
    if args.model.resolve().is_relative_to(args.output.resolve()):
        parser.error(f"{args.output} holds the checkpoint, and would be replaced.")
    sentences = LacosSentenceTransformer(
        args.model, transformer_options={"quantization": "none", "max_seq_length": 128}
    )
    if isinstance(sentences[-1], LexicalSketch):  # of a checkpoint that was the shipped base: `lexical.py` counts anew
        del sentences[-1]
    width, sketch = sentences.get_embedding_dimension(), LexicalSketch.load(str(args.work_dir), SKETCH)
    sentences.append(sketch)
    with tempfile.TemporaryDirectory() as folder:
        sentences.transformer.model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        tokenizer.backend_tokenizer.no_truncation()  # a length that was used last is saved otherwise
        tokenizer.init_kwargs = {k: v for k, v in tokenizer.init_kwargs.items() if k in KEEP}
        tokenizer.save_pretrained(folder)
        shutil.rmtree(args.output, ignore_errors=True)
        pack(folder, args.output)
        # The base says itself, in stock sentence-transformers' terms, how its states become an embedding.
        sentences.save(f"{folder}/saved", create_model_card=False)
        for source in Path(folder, "saved").iterdir():
            if source.is_dir():
                shutil.copytree(source, args.output / source.name)
            elif source.name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
                shutil.copyfile(source, args.output / source.name)
    config = sentences.transformer.config
    parameters = sum(p.numel() for p in sentences.parameters())
    report = json.loads((args.work_dir / "sources.json").read_text(encoding="utf-8"))
    (args.output / "README.md").write_text(card(config, width, sketch, parameters, report), encoding="utf-8")
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
