"""Whatever lies in a model's directory, it loads, or one error names the file."""

import json
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from tiny import randomise, tree

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer

VALUES = [None, True, -1, 0, 3, 10_000_000, 10**18, 1e308, 0.5, "x", "", "../..", "someone/kernel", [], {}, ["a"], [1]]
VALUES += [{"a": 1}, [[]], "1_Dense", "float16", "load"]


@pytest.fixture(scope="module")
def saved(tiny_bloom, tmp_path_factory):
    """A self-contained model with two adapters and modules above, and one adapter by reference to a directory."""
    root = tmp_path_factory.mktemp("saved")
    model = randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    model.save_pretrained(str(root / "reference"), self_contained=False)
    config = root / "reference" / "adapter_config.json"
    told = json.loads(config.read_text()) | {"base_model_name_or_path": str(tiny_bloom)}
    config.write_text(json.dumps(told))
    model.add_lora(rank=3, name="second")
    model.set_adapter("default")
    width = model.get_embedding_dimension()
    for module in (Dense(width, 8), Normalize()):
        model.append(module)
    model.save_pretrained(str(root / "whole"))
    return root


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutate_json(file, chance):
    content = file.read_text(encoding="utf-8")
    if chance.random() < 0.15:
        file.write_text(content[: chance.randrange(len(content))], encoding="utf-8")
        return "cut short"
    value = json.loads(content)
    *path, last = chance.choice([path for path in places(value) if path and len(path) < 4])
    holder = value
    for key in path:
        holder = holder[key]
    what = f"{[*path, last]}"
    if chance.random() < 0.2:
        del holder[last]
    elif chance.random() < 0.1 and isinstance(holder, dict):
        holder[chance.choice(["unknown", "_attn_implementation", "n_layer", "use_kernels"])] = chance.choice(VALUES)
    else:
        holder[last] = chance.choice(VALUES)
        what += f" = {holder[last]!r}"
    file.write_text(json.dumps(value), encoding="utf-8")
    return what


def mutate_tensors(file, chance):
    content = file.read_bytes()
    if chance.random() < 0.3:
        at = chance.randrange(min(len(content), 2_000))
        file.write_bytes(content[:at] + bytes([chance.randrange(256)]) * chance.choice([0, 1, 3]) + content[at + 1 :])
        return f"byte {at}"
    tensors = load_file(file)
    key = chance.choice(sorted(tensors))
    kind = chance.choice(["lost", "renamed", "flat", "rows", "doubles", "integers"])
    value = tensors.pop(key)
    changed = {
        "renamed": {f"{key}x": value},
        "flat": {key: value.flatten()},
        "rows": {key: value[:1].clone() if value.dim() else value[None]},
        "doubles": {key: value.double()},
        "integers": {key: value.int()},
    }
    save_file({**tensors, **changed.get(kind, {})}, file, metadata={"format": "pt"})
    return f"{key} {kind}"


def outcome(directory, seed):
    """Change one file of a copy, and load it."""
    chance = random.Random(seed)
    file = directory / chance.choice([name for name in sorted(tree(directory)) if name.endswith(("json", "tensors"))])
    what = (mutate_json if file.suffix == ".json" else mutate_tensors)(file, chance)
    try:
        LacosSentenceTransformer(str(directory))
    except Exception as error:
        if not isinstance(error, LacosError) or file.name not in str(error):
            raise AssertionError(f"{file}: {what}: {type(error).__name__}: {error}") from error
        return f"{file.name}: {what}: {str(error)[:300]}"
    return None


@pytest.mark.parametrize("kind", ["whole", "reference"])
def test_a_changed_directory_loads_or_is_one_error_that_names_the_file(kind, saved, tmp_path):
    refused = 0
    for seed in range(40):
        shutil.copytree(saved / kind, tmp_path / str(seed))
        refused += outcome(tmp_path / str(seed), f"{kind} {seed}") is not None
    assert 10 < refused < 40
