"""Two names and one of them again: indirect object identification and a plainer task (W App. H, Fig. 13)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.circuits.path_patching import Cache, clean_logits, in_chunks
from lib.circuits.prompts import Tokens
from lib.models.families import family_of
from lib.models.mamba import Mamba, time_step

TWO_NAMES = ">>> {IO} = 1\n>>> {S} = 2\n>>> {S} +"
IDENTIFIERS = """a b c d e f g h k m n p q r s t u v w x y z axis data name value key index size shape left
right start first min max mean rows columns width height low high alpha lower input output source target
train test new""".split()
SIDES = ("IO", "S")


@dataclass(frozen=True)
class NamePrompts:
    """Prompts of one template; corrupted ones have two other names in the same places."""

    clean: Tokens
    corrupt: Tokens
    names: Int[Tensor, "samples 2"]
    """Token ids of IO and S."""
    words: list[str]
    """The first prompt's tokens, in print."""

    def positions(self, side: str) -> list[int]:
        """Where IO or S stands, in every prompt: IO once, S twice."""
        name = self.names[:, SIDES.index(side), None]
        return (self.clean == name).all(0).nonzero()[:, 0].tolist()


def one_token_words(words: Sequence[str], tokenizer) -> dict[str, int]:
    """The words that are one token after a space, with its id."""
    ids = {word: tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in words}
    return {word: tokens[0] for word, tokens in ids.items() if len(tokens) == 1}


def name_prompts(
    template: str, tokenizer, seed: int, n_samples: int, names: Sequence[str] = IDENTIFIERS
) -> NamePrompts:
    """Random pairs of names in a template; of identifiers where the tokenizer has fewer than eight names as a token.

    IO, S, IO′ and S′ differ; the pair of IO and S stands in no sentence that a mini model was trained on (`sentences`).
    The answer that IOI asks for is IO. Raises `ValueError` if prompts differ in length.
    """
    known = one_token_words(names, tokenizer)
    known = known if len(known) >= 8 else one_token_words(IDENTIFIERS, tokenizer)
    rng = np.random.default_rng(seed)
    pairs = [pair for pair in permutations(known, 2) if is_held_out(*pair)]
    drawn = [
        (*pair, *rng.choice([name for name in known if name not in pair], 2, replace=False))
        for pair in (pairs[k] for k in rng.integers(len(pairs), size=n_samples))
    ]

    def encode(io: str, s: str) -> list[int]:
        text = template.format(IO=io, S=s)
        return [tokenizer.bos_token_id or 0, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    clean, corrupt = [encode(*row[:2]) for row in drawn], [encode(*row[2:]) for row in drawn]
    if len({len(row) for row in clean + corrupt}) > 1:
        raise ValueError(f"the names make prompts of different lengths in {template!r}.")
    names = torch.tensor([[known[io], known[s]] for io, s, _, _ in drawn])
    words = ["BOS", *(tokenizer.decode([token]) for token in clean[0][1:])]
    return NamePrompts(torch.tensor(clean), torch.tensor(corrupt), names, words)


def task_quality(model: TransformerBridge, prompts: NamePrompts) -> dict[str, float]:
    """Does the model do the task? Mean logit differences at the last position, and how often they are positive.

    `io_minus_s`: IOI itself. `io_over_absent`, `s_over_absent`: how much higher the name's logit is than in the
    corrupted prompt, where it does not occur: copying.
    """
    clean, corrupt = (clean_logits(model, tokens, prompts.names) for tokens in (prompts.clean, prompts.corrupt))
    values = {"io_minus_s": clean[:, 0] - clean[:, 1]}
    values |= {f"{side.lower()}_over_absent": clean[:, k] - corrupt[:, k] for k, side in enumerate(SIDES)}
    shares = {f"{name}_share": float((value > 0).float().mean()) for name, value in values.items()}
    return {name: float(value.mean()) for name, value in values.items()} | shares


# ------------------------------------------------------------------------------------------- sentences

PAIRS_HELD_OUT = 10  # one pair of names in ten stands in no training sentence, chosen by its hash


@dataclass(frozen=True)
class Sentence:
    """A sentence of two names, the acting one (S) twice, that ends with the other one (IO) and perhaps a full stop."""

    text: str
    io: str
    s: str

    @property
    def prompt(self) -> str:
        """The sentence up to the word before its last name."""
        return self.text[: self.text.rindex(f" {self.io}")]


def unseen_template(parts: Mapping[str, Any]) -> str:
    """The first of the held-out templates with IO named first, one place and one object, up to the last word."""
    text = parts["held_out_templates"][0].rpartition(" {IO}")[0]
    return text.format(A="{IO}", B="{S}", S="{S}", place=parts["places"][0], object=parts["objects"][0])


def with_one_token_names(drawn: Sequence[Sentence], tokenizer) -> list[Sentence]:
    """The sentences whose two names are one token each."""
    known = one_token_words(sorted({name for sentence in drawn for name in (sentence.io, sentence.s)}), tokenizer)
    return [sentence for sentence in drawn if {sentence.io, sentence.s} <= known.keys()]


def is_held_out(a: str, b: str) -> bool:
    """Whether a pair of names, in either order, stands in no training sentence."""
    digest = hashlib.blake2b("\0".join(sorted((a, b))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % PAIRS_HELD_OUT == 0


def training_template(parts: Mapping[str, Any], rng: np.random.Generator) -> str:
    """An opening, a link and an action, drawn at random: with thousands of templates, no place tells IO from S."""
    kind = rng.choice(list(parts["openings"]))
    opening, link = (rng.choice(parts[what][kind]) for what in ("openings", "links"))
    return f"{opening}{link} {rng.choice(parts['actions'])}."


def sentences(parts: Mapping[str, Any], n: int, rng: np.random.Generator, held_out: bool = False) -> list[Sentence]:
    """Sentences drawn at random from `parts`: names, places, objects, and what `training_template` takes.

    Held-out sentences have templates (`held_out_templates`) and pairs of names that no other has.
    """
    found: list[Sentence] = []
    while len(found) < n:
        a, b = rng.choice(parts["names"], 2, replace=False)
        s, io = (a, b) if rng.random() < 0.5 else (b, a)
        place, thing = (rng.choice(parts[what]) for what in ("places", "objects"))
        template = rng.choice(parts["held_out_templates"]) if held_out else training_template(parts, rng)
        if is_held_out(a, b) == held_out:
            text = str(template).format(A=a, B=b, S=s, IO=io, place=place, object=thing)
            found.append(Sentence(text, str(io), str(s)))
    return found


# ------------------------------------------------------------------------------------------- Fig. 13


@torch.no_grad()
def input_effects(model: TransformerBridge, prompts: NamePrompts) -> Float[Tensor, "n_layers n_positions 2"]:
    """Fig. 13: the SSM input c of one layer and position patched; what the logits of IO and S gain, mean over samples.

    The patch acts through every path but the other layers' SSMs: their states stay, at all positions, what they were
    in the clean run. Raises `ValueError` for a model that is not a Mamba.
    """
    architecture = family_of(model)
    if not isinstance(architecture, Mamba):
        raise ValueError(f"an SSM input is Mamba's; the model is a {family_of(model).model_type}.")
    total, chunks = 0, in_chunks(model, prompts.clean, prompts.corrupt, prompts.names)
    for tokens, others, names in tqdm(chunks, "path patching, names", mininterval=5):
        clean, corrupt = architecture.run(tokens), architecture.run(others)
        total = total + _chunk_effects(architecture, clean, corrupt, names)
    return (total / len(prompts.clean)).cpu()


def _chunk_effects(
    architecture: Mamba, clean: Cache, corrupt: Cache, names: Tensor
) -> Float[Tensor, "n_layers n_positions 2"]:
    """Sum over samples."""
    n_layers = len(architecture.blocks)
    states = [_states(architecture.blocks[k].mixer, architecture.inputs(clean, k)) for k in range(n_layers)]
    last = _after(architecture, n_layers - 1, clean[f"blocks.{n_layers - 1}.hook_in"], states[-1])
    usual, rows = _two_logits(architecture, last, names), []
    for layer in range(n_layers):
        for position in range(states[0].shape[1]):
            c = architecture.inputs(clean, layer).clone()
            c[:, position] = architecture.inputs(corrupt, layer)[:, position]
            patched = _states(architecture.blocks[layer].mixer, c)
            resid = _after(architecture, layer, clean[f"blocks.{layer}.hook_in"], patched, c)
            for later in range(layer + 1, n_layers):
                resid = _after(architecture, later, resid, states[later])
            rows.append((_two_logits(architecture, resid, names) - usual).sum(0))
    return torch.stack(rows).unflatten(0, (n_layers, -1))


def _states(mixer, c: Float[Tensor, "samples tokens d_inner"]) -> Float[Tensor, "samples tokens d_inner d_state"]:
    """The SSM's state after every token."""
    dt, B, _ = time_step(mixer, c)
    A, h, found = -mixer.A_log.exp(), 0, []
    for t in range(c.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt * c)[:, t, :, None] * B[:, t, None]
        found.append(h)
    return torch.stack(found, dim=1)


def _after(
    architecture: Mamba, layer: int, resid: Tensor, states: Tensor, c: Tensor | None = None
) -> Float[Tensor, "samples tokens d_model"]:
    """The residual stream after a block at all positions, with given states and, if it is given, another SSM input."""
    block = architecture.blocks[layer]
    x, gate = block.mixer.in_proj(block.norm(resid)).chunk(2, dim=-1)
    if c is None:
        c = F.silu(block.mixer.conv1d(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
    _, _, C = time_step(block.mixer, c)
    y = torch.einsum("btdn,btn->btd", states, C) + block.mixer.D * c
    return resid + block.mixer.out_proj(y * F.silu(gate))


def _two_logits(architecture: Mamba, resid: Tensor, names: Int[Tensor, "samples 2"]) -> Float[Tensor, "samples 2"]:
    weight = architecture.model.original_model.get_output_embeddings().weight
    return torch.einsum("sd,skd->sk", architecture.norm(resid[:, -1]), weight[names])


def effects_table(effects: Float[Tensor, "n_layers n_positions 2"], words: Sequence[str]) -> pd.DataFrame:
    """Tidy: layer, position, token, name (IO or S), mean_logit_diff."""
    return pd.DataFrame(
        {"layer": layer, "position": position, "token": words[position], "name": side, "mean_logit_diff": float(value)}
        for layer, positions in enumerate(effects)
        for position, sides in enumerate(positions)
        for side, value in zip(SIDES, sides, strict=True)
    )
