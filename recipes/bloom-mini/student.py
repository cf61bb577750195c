"""The student: a small BLOOM, and how its token states become a sentence embedding.

    token states (tokens, hidden) -> relu(W h) (tokens, 2 x hidden) -> mean -> layer norm: (sentences, 2 x hidden)

**Why a layer before the mean.** The mean of random vectors in 256 dimensions has noise: two unrelated tokens have a
cosine of about 1 / sqrt(256). Averaging after a ReLU over random directions reduces it. The rows of W come in pairs,
v and -v, so that one half of a cosine is that of the states, and the other that of |V h|. The latter is nearly the
square of the former, token by token, and squaring makes small accidental cosines vanish. W is random and fixed:
training it, or training the student through it, was no better.

**How a token says how much it counts.** BLOOM normalises each token's vector at the start and at the end, so a
vector's length cannot carry a weight. The last two dimensions do (`quiet_`): large values there leave less of the
normalised length to all others, and the final layer norm sets the two to 0.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pack import pack_table, round_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling
from torch import Tensor, nn
from transformers import BloomConfig, BloomModel

from lacos_st.decoder.bloom import LacosBloomModel
from lacos_st.decoder.packing import Layout
from lacos_st.files import atomic


def config(vocabulary: int, hidden: int, layers: int) -> BloomConfig:
    """Tokens see both sides, in transformers' own way: stock software reads the model."""
    return BloomConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        n_layer=layers,
        n_head=hidden // 32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        is_causal=False,
    )


class Widening(nn.Module):
    """Token states -> sentence embeddings (sentences, 2 x hidden), of sentence-transformers' own modules, fixed.

    V's columns are orthonormal, so that cosines of V h are those of h; without a bias a token that speaks quietly still
    does. The layer norm takes away what all embeddings have in common: activations have a mean, and states have none.

    Args:
        hidden: Size of a state; its last two dimensions, which are silent, are not read.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = Dense(hidden, 2 * hidden, False, nn.ReLU(), module_input_name="token_embeddings")
        self.norm = LayerNorm(2 * hidden)
        random = torch.randn(hidden, hidden - 2, generator=torch.Generator().manual_seed(0))
        rows = nn.functional.pad(torch.linalg.qr(random)[0], (0, 2)).half().float()  # as the package has them
        self.dense.linear.weight.data.copy_(torch.cat([rows, -rows]))
        self.requires_grad_(False)

    def forward(self, states: Tensor, bounds: Tensor) -> Tensor:
        """(tokens, hidden) states of sentences end to end -> (sentences, 2 x hidden) embeddings."""
        return self.norm.norm(pool(self.dense({"token_embeddings": states})["token_embeddings"], bounds))


def save(model: BloomModel, output: Path, tokenizer: Path) -> None:
    """Write a checkpoint, for sentence-transformers too if it has layers, with the tokenizer from another folder."""
    model.save_pretrained(output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, output / name)
    if not model.config.n_layer:
        return
    widening = Widening(model.config.hidden_size)
    above = [widening.dense, Pooling(widening.dense.out_features, "mean"), widening.norm, Normalize()]
    kinds = [Transformer, *map(type, above)]
    folders = ["", *(f"{number}_{kind.__name__}" for number, kind in enumerate(kinds[1:], 1))]
    for folder, module in zip(folders[1:], above, strict=True):
        (output / folder).mkdir(exist_ok=True)
        module.save(str(output / folder))
    listing = [
        {"idx": number, "name": str(number), "path": folder, "type": f"{kind.__module__}.{kind.__name__}"}
        for number, (folder, kind) in enumerate(zip(folders, kinds, strict=True))
    ]
    (output / "modules.json").write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


AMPLIFIERS, GAIN = 64, 32.0


def grow(static: BloomModel, layers: int) -> LacosBloomModel:
    """Put layers under trained token vectors; the new model begins by saying exactly what `static` said.

    In `static` a token that counts little carries large values in the last two dimensions (see `quiet_`), beside which
    its meaning all but vanishes: layers above it would read nothing. So the table now says quietly how quiet a token
    is, with the meaning at full size, and neurons of the last layer amplify that. Sixty-four share the work: one with
    a weight of 32 would take its row's resolution in 8 bits.
    """
    model = LacosBloomModel(config(static.config.vocab_size, static.config.hidden_size, layers))
    hidden = model.config.hidden_size
    with torch.no_grad():
        model.ln_f.load_state_dict(static.ln_f.state_dict())
        for block in model.h:
            block.self_attention.dense.weight.zero_()
            block.mlp.dense_4h_to_h.weight.zero_()
        table = static.word_embeddings_layernorm(static.word_embeddings.weight)
        said = table[:, :-2] - table[:, :-2].mean(1, keepdim=True)
        ratio = table[:, -2:].square().mean(1).sqrt() / said.norm(dim=1)
        level = torch.linspace(0, 0.5 * hidden**0.5, 10000)  # of the quiet pair below the amplifiers; its ratio above
        kept = (hidden - 2 * level.square()).clamp_min(1e-6).sqrt()
        amplified = (level + GAIN * torch.nn.functional.gelu(2 * level, approximate="tanh")) / kept
        at = torch.searchsorted(amplified, ratio.clamp_max(float(amplified[-1]))).clamp_max(len(level) - 1)
        pair = level[at][:, None]
        said = torch.nn.functional.normalize(said, dim=1) * kept[at][:, None]
        model.word_embeddings.weight.copy_(torch.cat([said, pair, -pair], 1))
        mlp = model.h[-1].mlp
        mlp.dense_h_to_4h.weight[:AMPLIFIERS, -2:] = torch.tensor([1.0, -1.0])
        mlp.dense_4h_to_h.weight[-2:, :AMPLIFIERS] = torch.tensor([[1.0], [-1.0]]) * GAIN / AMPLIFIERS
    return model


def quiet_(model: BloomModel, vectors: Tensor, weight: Tensor) -> None:
    """Set token vectors, each of which will speak as loudly in a sentence's mean as its weight, in (0, 1], says.

    BLOOM normalises every token's vector, first and last, so that a length cannot say how much a token counts. What
    a token should keep to itself goes into the last two dimensions, as +d and -d, where normalising shrinks the rest;
    the final gain of those two is 0.
    """
    said = vectors[:, :-2]
    said = said - said.mean(1, keepdim=True)
    silent = said.norm(dim=1) * ((1 / weight.square() - 1) / 2).sqrt()
    with torch.no_grad():
        table = torch.cat([said, silent[:, None], -silent[:, None]], 1)
        model.word_embeddings.weight.copy_(table / table.std(1, keepdim=True))
        model.ln_f.weight[-2:] = 0


def adamw(model: BloomModel, lr: float, lr_table: float) -> tuple[torch.optim.AdamW, list[nn.Parameter]]:
    """The optimiser, the table at a rate of its own, and all other weights, whose gradients are clipped."""
    others = [weight for name, weight in model.named_parameters() if name != "word_embeddings.weight"]
    groups = [{"params": others, "lr": lr}, {"params": [model.word_embeddings.weight], "lr": lr_table}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True), others


class Rounding:
    """The table's rows as 4 bits will have them (`pack.py`), for layers to get used to.

    Gradients pass as if nothing had been rounded (Bengio et al., 2013). Levels are fitted when it is made.
    """

    def __init__(self, model: BloomModel) -> None:
        self.coarse = model.ln_f.weight.detach().half() != 0
        weight = model.word_embeddings.weight
        self.levels = pack_table(weight.detach().cpu(), ~self.coarse.cpu())["levels"].to(weight.device)

    def __call__(self, rows: Tensor) -> Tensor:
        """(tokens, hidden), in and out."""
        with torch.no_grad():
            error = torch.zeros_like(rows)
            nearest, scale = round_rows(rows[:, self.coarse], self.levels)
            error[:, self.coarse] = self.levels[nearest] * scale[:, None] - rows[:, self.coarse]
        return rows + error


class StochasticDepth:
    """Each layer's attention is there in `keep` of the steps, and then 1 / keep as loud (Huang et al., 2016).

    What attention adds is what the tokens of a sentence share: layers that may rely on it order pairs less well.
    """

    def __init__(self, model: BloomModel, keep: float) -> None:
        self.keep, self.gain = keep, [1.0] * len(model.h)
        for layer, block in enumerate(model.h):
            block.self_attention.dense.register_forward_hook(partial(self._scale, layer))

    def _scale(self, layer: int, module: torch.nn.Module, inputs: tuple[Tensor, ...], added: Tensor) -> Tensor:
        return added * self.gain[layer] if module.training else added

    def draw(self, random: np.random.Generator) -> None:
        """Choose for one step."""
        self.gain = [float(there) / self.keep for there in random.random(len(self.gain)) < self.keep]


LONGEST = 128  # tokens of a sentence on a GPU


def states(model: BloomModel, ids: Tensor, bounds: Tensor, rounding: Rounding | None = None) -> Tensor:
    """(tokens,) ids of sentences end to end -> (tokens, hidden) fp32; on a GPU under autocast, as training does."""
    rows = model.word_embeddings(ids)
    if rounding is not None:
        rows = rounding(rows)
    if not torch.is_autocast_enabled("cuda"):
        return model(inputs_embeds=rows[None], cu_seq_lens_q=bounds).last_hidden_state[0].float()
    layout = Layout(None, [], bounds.int(), LONGEST)  # all sequences in one call: nothing to plan, nothing to wait for
    rows = model.word_embeddings_layernorm(rows)
    for block in model.h:
        rows = block(rows, layout=layout)
    return model.ln_f(rows).float()


def pool(tokens: Tensor, bounds: Tensor) -> Tensor:
    """(tokens, hidden) -> (sentences, hidden), their mean."""
    lengths = bounds.diff()
    sentence = torch.repeat_interleave(lengths, output_size=len(tokens))
    return tokens.new_zeros(len(lengths), tokens.shape[1]).index_add(0, sentence, tokens / lengths[sentence, None])


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, the optimiser's moments and the step into one safetensors file, which replaces the last whole.

    A run killed at any moment goes on from the newest state that is there.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the state into `model` and `optimizer`, and return the step."""
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in load_file(path).items():
        kind, _, name = key.partition(".")
        if kind == "model":
            weights[name] = tensor
        else:
            number, _, moment = name.partition(".")
            moments[int(number)][moment] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])
