"""Run by `test_pushing.py` in a process of its own, for HF_ENDPOINT is read at import: upload models, and load them.

Arguments: a directory with a plain base, and one to write what was found to.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise

from lacos_st import LacosSentenceTransformer
from lacos_st.errors import LacosError

base, output = Path(sys.argv[1]), Path(sys.argv[2])
token, texts, found = os.environ["STAND_IN_TOKEN"], list(CORPUS), {}


def forget():
    """As another machine: nothing in the cache."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def encoded(name, cls):
    forget()
    return cls(name).encode(texts)


api = HfApi(token=token)
api.create_repo("someone/tiny-bloom")
api.upload_folder(repo_id="someone/tiny-bloom", folder_path=base)

model = randomise(LacosSentenceTransformer("someone/tiny-bloom").add_lora(rank=4))
expected = model.encode(texts)
try:
    model.push_to_hub("me/none", token="hf_refused")
except HfHubHTTPError as error:
    found["refused"] = str(error)
found["urls"] = [
    model.push_to_hub("me/adapter", token=token),
    model.push_to_hub("me/whole", token=token, self_contained=True),
]
for repository in ("me/adapter", "me/whole"):
    for cls in (LacosSentenceTransformer, SentenceTransformer):
        again = encoded(repository, cls)
        cosine = (again * expected).sum(1) / np.linalg.norm(again, axis=1) / np.linalg.norm(expected, axis=1)
        found[f"{repository} {cls.__name__}"] = [float(np.abs(again - expected).max()), float(cosine.min())]

# a base of one's own machine goes with its adapter, and an adapter alone is refused
own = randomise(LacosSentenceTransformer(base).add_lora(rank=4))
own.save(str(output / "by-reference"), self_contained=False)
own.save(str(output / "unnamed"))
own.push_to_hub("me/own", token=token)
found["own"] = float(np.abs(encoded("me/own", LacosSentenceTransformer) - own.encode(texts)).max())
found["refusals"] = []
for options in (
    {"self_contained": False},
    {"local_model_path": str(output / "by-reference")},
    {"local_model_path": str(output / "unnamed")},
):
    try:
        own.push_to_hub("me/refused", token=token, **options)
    except LacosError as error:
        found["refusals"].append(str(error))
(output / "found.json").write_text(json.dumps(found), encoding="utf-8")
