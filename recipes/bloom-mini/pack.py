"""Last stage: the trained base becomes the files that travel with the package.

A checkpoint has 4 bytes a weight: 69 MB for 17 million. Packed it is a seventh of that.

* Layers: 8 bits. Each row of a matrix has one scale, its largest absolute entry; entries become whole numbers from
  -127 to 127. That is what bitsandbytes stores, so stock transformers reads it.
* Embedding table: 4 bits an entry. Half of the usual 8 cost a small model hardly anything: a sentence is a mean over
  tokens, which averages their rounding out. An entry, divided by its row's root mean square, becomes the nearest of
  16 levels, which are fitted to the table (Lloyd, 1982); a row's scale then makes the least squared error.
* Two *fine* columns of the table keep 8 bits: the model says in them how much a token counts, its layers amplify
  that, and 4 bits are too few for values that steer others (as outliers in LLM.int8; Dettmers et al., 2022).

`lacos_st.embedded.unpack.unpack` is the way back. An adapter trained on the base travels without it:

    python pack.py base work/bloom-mini/retrofitted
    lacos-st train --output lacos-bloom && python pack.py adapter lacos-bloom

Shapes: V rows of H entries, F of them fine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from lacos_st import LacosSentenceTransformer
from lacos_st.embedded.names import ASSETS
from lacos_st.embedded.packed_table import LEVELS
from lacos_st.errors import LacosError

SAMPLE = 2**20  # entries that the levels are fitted to
ROUNDS = 100
TABLE, FINAL_GAIN, TOKENIZER = "word_embeddings", "ln_f.weight", "tokenizer.json"
LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
SHARED = ("config.json", TOKENIZER, "tokenizer_config.json")
SETTINGS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
KEEP = {"bos_token", "eos_token", "unk_token", "pad_token", "padding_side", "truncation_side", "model_max_length"}
LONGEST = 128  # tokens of a sentence

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: feature-extraction
language: [{languages}]
non_commercial_sources: [{restricted}]
---
# bloom-mini

A small multilingual BLOOM for sentence embeddings: {layers} layers of {hidden}, {heads} heads, {vocabulary:,}
byte-level BPE entries, {parameters:.1f} million parameters in 8 bits (the table, inside the package, in 4). Tokens see
both sides (`is_causal: false`, which transformers reads from 5.2 on), with ALiBi.
It is the base that LACoS adapts: `lacos-bloom` is this model with a LoRA adapter.

A sentence embedding, of {width} dimensions, is a fixed random layer with ReLU over every token's state (`1_Dense/`),
the mean of all tokens (`2_Pooling/`), a layer norm that centres it (`3_LayerNorm/`), and scaling to length 1
(`4_Normalize/`); the tokenizer appends `</s>`.
The last two dimensions of a state are silent: the model keeps there what a token should not say.

Trained by `recipes/bloom-mini/`: token vectors first, then layers, distilled from two teachers; then words of one
meaning drawn together.
all-MiniLM-L6-v2 (Apache-2.0) reads English: a sentence and its translations are drawn to its embedding of the English.
multilingual-e5-small (MIT) reads sentences and frequent words of all languages.
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


def fit_levels(entries: Tensor) -> Tensor:
    """Fit the levels that make the least squared error: Lloyd's algorithm in one dimension.

    Args:
        entries: At least one value, any shape.

    Returns:
        (16,) fp32, ascending.

    Example:
        >>> fit_levels(torch.arange(16.0).repeat(4)).tolist()[:4]
        [0.0, 1.0, 2.0, 3.0]
    """
    sample = entries.flatten().double().sort().values
    levels = sample[
        torch.linspace(0, len(sample) - 1, LEVELS, dtype=torch.float32, device=sample.device).round().long()
    ]
    for _ in range(ROUNDS):
        nearest = torch.bucketize(sample, (levels[1:] + levels[:-1]) / 2)
        count = torch.bincount(nearest, minlength=LEVELS)
        mean = torch.zeros_like(levels).index_add(0, nearest, sample) / count.clamp_min(1)
        levels = torch.where(count > 0, mean, levels)
    return levels.float()


def _ratio(rows: Tensor) -> Tensor:
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-20)


def round_rows(rows: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Find each entry's level and each row's scale.

    Args:
        rows: (n, C) fp32.
        levels: (16,) ascending.

    Returns:
        (n, C) the nearest level of each entry, and (n,) the scale that makes ``levels[nearest] * scale`` nearest to
        the row.
    """
    nearest = torch.bucketize(_ratio(rows), (levels[1:] + levels[:-1]) / 2)
    rounded = levels[nearest]
    return nearest, (rounded * rows).sum(1) / rounded.square().sum(1).clamp_min(1e-20)


def pack_table(table: Tensor, fine: Tensor) -> dict[str, Tensor]:
    """Round a table to 4 bits an entry.

    Args:
        table: (V, H) floating.
        fine: (H,) bool, the columns that keep 8 bits: not all of them.

    Returns:
        ``codes`` (V, ceil((H - F) / 2)) uint8, two entries a byte, the first in the low half; ``levels`` (16,);
        ``scale`` (V,) bf16; ``fine`` (V, F) int8; ``fine_scale`` (F,), the value of 127.
    """
    table = table.float()
    coarse, kept = table[:, ~fine], table[:, fine]
    rows = -(-SAMPLE // coarse.shape[1])
    levels = fit_levels(_ratio(coarse[:: -(-len(coarse) // rows)]))
    nearest, scale = round_rows(coarse, levels)
    if nearest.shape[1] % 2:
        nearest = torch.nn.functional.pad(nearest, (0, 1))
    fine_scale = kept.abs().amax(0)
    return {
        "codes": (nearest[:, ::2] + LEVELS * nearest[:, 1::2]).to(torch.uint8),
        "levels": levels,
        "scale": scale.bfloat16(),
        "fine": (kept * (127 / fine_scale.clamp_min(1e-20))).round().to(torch.int8),
        "fine_scale": fine_scale,
    }


def pack(directory: str | Path, output: str | Path) -> None:
    """Write a BLOOM checkpoint in the packed form: int8 linear layers, 4-bit embedding table, compressed tokenizer.

    Columns of the table that the final layer norm silences are the fine ones.

    Args:
        directory: A checkpoint that `transformers.BloomModel` reads, in full precision, with its tokenizer.
        output: Directory to write; files of the same names in it are replaced.

    Raises:
        LacosError: It is no BLOOM checkpoint, lies in several files, or has entries that are no numbers.
    """
    source, target = Path(directory), Path(output)
    missing = [name for name in (*SHARED, "model.safetensors") if not (source / name).is_file()]
    if missing:
        raise LacosError(f"{str(source)!r} has no {', '.join(missing)}: pack() needs one whole checkpoint.")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bloom":
        raise LacosError(f"{str(source)!r} is a {config.get('model_type')!r} model, and pack() takes BLOOM.")
    weights = {
        key.removeprefix("transformer."): tensor for key, tensor in load_file(source / "model.safetensors").items()
    }
    broken = [key for key, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise LacosError(f"{broken[0]!r} in {str(source)!r} has entries that are infinite or no numbers.")
    packed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        layer = key.removesuffix(".weight")
        if layer == TABLE:
            table = pack_table(tensor, weights[FINAL_GAIN].half() == 0)
            packed |= {f"{TABLE}.{part}": value for part, value in table.items()}
        elif layer != key and layer.rpartition(".")[2] in LINEAR:
            scale = tensor.float().abs().amax(1)
            packed[key] = (tensor.float() * (127 / scale.clamp_min(1e-20))[:, None]).round().to(torch.int8)
            packed[f"{layer}.SCB"] = scale
            rows = torch.tensor(0, dtype=torch.uint8, device="cpu")  # how the weights lie, in bitsandbytes' terms
            packed[f"{layer}.weight_format"] = rows
        elif key != "lm_head.weight":  # tied to the table
            packed[key] = tensor.half()
    config |= {
        "architectures": ["BloomModel"],
        "dtype": "float16",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
    (target / TOKENIZER).unlink(missing_ok=True)  # of an older packing
    (target / f"{TOKENIZER}.gz").write_bytes(gzip.compress(compact, mtime=0))
    shutil.copyfile(source / "tokenizer_config.json", target / "tokenizer_config.json")
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file(packed, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner reads


def pack_adapter(directory: str | Path, output: str | Path) -> None:
    """Write what a saved LACoS model has beyond the embedded base: adapter and sentence-transformers settings.

    Args:
        directory: A self-contained model that was trained on the embedded "bloom-mini" with its own template.
        output: Directory to write; an old one is replaced.

    Raises:
        LacosError: The model has another base or another template, or not all modules that the base has.
    """
    source, target = Path(directory), Path(output)
    record = json.loads((source / "lacos.json").read_text(encoding="utf-8"))
    base = load_file(ASSETS / "bloom-mini" / "model.safetensors")
    weights = load_file(source / "model.safetensors")
    key = "h.0.self_attention.query_key_value.weight"
    config = json.loads((ASSETS / "bloom-mini" / "config.json").read_text(encoding="utf-8"))
    attention = "causal" if config.get("is_causal", True) else "bidirectional"
    as_the_base = (record["template"], record["attention"]) == ("{text}</s>", attention)
    if not as_the_base or key not in weights or not torch.equal(weights[key], base[key]):
        raise LacosError(
            f"{str(source)!r} was not trained on the embedded 'bloom-mini' with its attention and '{{text}}</s>': "
            "train it again, or unpack the base that it belongs to."
        )
    modules = [path for path in (ASSETS / "bloom-mini").iterdir() if path.is_dir()]
    if missing := [path.name for path in modules if not (source / path.name).is_dir()]:
        raise LacosError(
            f"{str(source)!r} has no {', '.join(missing)}, which `unpack` would give back to it: an adapter travels "
            "with the base's own modules. Save the model whole."
        )
    training = json.loads((source / "training.json").read_text(encoding="utf-8"))
    paths = {record["base"]["name"]: "bloom-mini", training["recipe"]["output"]: "lacos-bloom"}
    record["base"] |= {"name": "bloom-mini", "revision": None}
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for file in ("model.safetensors", *SHARED):  # the base's own, which `unpack` puts there
        (target / file).unlink()
    for theirs in modules:
        if _same_module(target / theirs.name, theirs):  # a module that is the base's own as well
            shutil.rmtree(target / theirs.name)
    for file in ("README.md", "training.json"):  # they name the directories of the machine that trained it
        text = (target / file).read_text(encoding="utf-8")
        for path, name in paths.items():
            text = text.replace(path, name)
        (target / file).write_text(text, encoding="utf-8")
    (target / "lacos.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    settings = target / "adapter" / "adapter_config.json"
    adapter = json.loads(settings.read_text(encoding="utf-8")) | {"base_model_name_or_path": "bloom-mini"}
    settings.write_text(json.dumps(adapter, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (target / "adapter" / "adapter_model.safetensors").chmod(0o644)


def _same_module(mine: Path, theirs: Path) -> bool:
    """Whether two folders hold the same sentence-transformers module; weights are compared in 16 bits."""
    return all(_same_file(mine / path.name, path) for path in theirs.iterdir())


def _same_file(mine: Path, theirs: Path) -> bool:
    if not mine.is_file():
        return False
    if theirs.suffix != ".safetensors":
        return mine.read_bytes() == theirs.read_bytes()
    weights = load_file(mine)
    return all(torch.equal(weights[key].half(), value.half()) for key, value in load_file(theirs).items())


def pack_base(directory: Path, output: Path, work_dir: Path) -> None:
    """Write a checkpoint of `distil.py` or `retrofit.py` with its sentence-transformers modules and a model card."""
    sentences = LacosSentenceTransformer(
        directory, transformer_options={"quantization": "none", "max_seq_length": LONGEST}
    )
    with tempfile.TemporaryDirectory() as folder:
        sentences.transformer.model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.backend_tokenizer.no_truncation()  # a length that was used last is saved otherwise
        tokenizer.init_kwargs = {k: v for k, v in tokenizer.init_kwargs.items() if k in KEEP}
        tokenizer.save_pretrained(folder)
        shutil.rmtree(output, ignore_errors=True)
        pack(folder, output)
        # The base says itself, in stock sentence-transformers' terms, how its states become an embedding.
        sentences.save(f"{folder}/saved", create_model_card=False)
        for source in Path(folder, "saved").iterdir():
            if source.is_dir():
                shutil.copytree(source, output / source.name)
            elif source.name in SETTINGS:
                shutil.copyfile(source, output / source.name)
    report = json.loads((work_dir / "sources.json").read_text(encoding="utf-8"))
    (output / "README.md").write_text(card(sentences, report), encoding="utf-8")


def card(model: LacosSentenceTransformer, report: dict) -> str:
    """The base's model card, from what `collect.py` reported."""
    config, sources = model.transformer.config, report["sources"]
    restricted = ", ".join(name for name, source in sources.items() if "non-commercial" in source["licence"])
    return CARD.format(
        languages=", ".join(sorted({lang.split("-")[0] for lang, _ in report["sentences"]})),
        layers=config.n_layer,
        hidden=config.hidden_size,
        heads=config.n_head,
        vocabulary=config.vocab_size,
        width=model.get_embedding_dimension(),
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        dropped=sum(source["dropped_sts"] for source in sources.values()),
        restricted=restricted,
        noncommercial=restricted or "none",
        sources="\n".join(f"| {name} | {s['sentences']:,} | {s['licence']} |" for name, s in sources.items()),
        counts=", ".join(f"{lang} {n:,}" for lang, n in report["sentences"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["base", "adapter"])
    parser.add_argument("model", type=Path, help="base: output of retrofit.py; adapter: output of lacos-st train")
    parser.add_argument("--output", type=Path, help="default: the package's own folder")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"), help="where sources.json lies")
    args = parser.parse_args()
    output = args.output or ASSETS / {"base": "bloom-mini", "adapter": "lacos-bloom"}[args.kind]
    if args.model.resolve().is_relative_to(output.resolve()):
        parser.error(f"{output} holds the model, and would be replaced.")
    if args.kind == "adapter":
        pack_adapter(args.model, output)
    elif not (args.model / "1_Dense").is_dir():
        parser.error(f"{args.model} is no checkpoint with layers: give an output of `distil.py deep`.")
    else:
        pack_base(args.model, output, args.work_dir)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
