"""Trains the mini zoo: four small language models of three real architectures, on real text, on a CPU.

``python -m lib.zoo mini-pythia`` trains one model, ``python -m lib.zoo --all`` what is missing; a killed run goes
on at its last checkpoint with the same result. On a GPU the same command uses it.

The text alone would not make such small models copy within so few tokens. Part of every batch is therefore made
of repeated random tokens: half of it at first, a fifth at the end, with periods drawn log-uniformly from 1 to
128, so that easy short ones lead to long ones. On those rows only the predictable tokens are learnt.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lib import corpus, models, scans
from lib.profiles import DATA, Profile, get_profile
from lib.recipes import MODELS, RECIPES, Recipe, build, export

IGNORE = -100  # target of positions that are not learnt
CHECKPOINTS = DATA / "cache" / "zoo"  # outside the profiles' caches: clearing those must not cost hours


# ------------------------------------------------------------------------------------------------- batches


def packed_rows(documents: list[Int[np.ndarray, " n"]], recipe: Recipe, epoch: int) -> Int[np.ndarray, "rows context"]:
    """One epoch of text: all documents in a new order, joined by BOS, cut into rows that start with BOS."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(documents))
    stream = np.concatenate([part for i in order for part in (documents[i], [0])]).astype(np.int64)
    room = recipe.context_length - 1
    rows = stream[: len(stream) // room * room].reshape(-1, room)
    return np.concatenate([np.zeros((len(rows), 1), np.int64), rows], axis=1)


def repeated_rows(n_rows: int, context_length: int, periods: Int[np.ndarray, " rows"], rng) -> tuple[np.ndarray, ...]:
    """Rows of random tokens repeated with the given periods; targets only where the repeat makes them known."""
    tokens = rng.integers(2, corpus.VOCABULARY, (n_rows, context_length))
    tokens[:, 0] = 0
    place = np.arange(1, context_length) - 1
    for row, period in enumerate(periods):
        tokens[row, 1:] = tokens[row, 1 + place % period]
    targets = np.full_like(tokens, IGNORE)
    targets[:, :-1] = tokens[:, 1:]
    targets[np.arange(context_length)[None] < periods[:, None]] = IGNORE
    return tokens, targets


class Batches:
    """Training batches as a function of the step alone, so that a resumed run sees the same ones."""

    def __init__(self, documents: list[np.ndarray], recipe: Recipe) -> None:
        self.documents, self.recipe = documents, recipe
        self.epoch, self.rows = -1, np.empty((0, 0))
        self.rows_per_epoch = len(packed_rows(documents, recipe, 0))

    def n_repeated(self, step: int) -> int:
        """How many rows of a step's batch are repeats: falls linearly over the first half of training."""
        r = self.recipe
        progress = min(1.0, 2 * step / r.steps)
        share = r.repeat_share_start + (r.repeat_share_end - r.repeat_share_start) * progress
        return round(share * r.batch_rows)

    def text_rows(self, first: int, n_rows: int) -> np.ndarray:
        """Rows `first` … of the endless text; a batch that would cross into the next epoch starts there."""
        epoch, start = divmod(first, self.rows_per_epoch)
        start = min(start, self.rows_per_epoch - n_rows)
        if epoch != self.epoch:
            self.epoch, self.rows = epoch, packed_rows(self.documents, self.recipe, epoch)
        return self.rows[start : start + n_rows]

    def __call__(self, step: int) -> tuple[Int[Tensor, "rows context"], Int[Tensor, "rows context"]]:
        r = self.recipe
        rng = np.random.default_rng([r.seed, 1, step])
        repeated = self.n_repeated(step)
        first = sum(r.batch_rows - self.n_repeated(s) for s in range(step))
        text = self.text_rows(first, r.batch_rows - repeated)
        text_targets = np.full_like(text, IGNORE)
        text_targets[:, :-1] = text[:, 1:]
        periods = np.exp(rng.uniform(0, math.log(r.longest_period + 1), repeated)).astype(int)
        tokens, targets = repeated_rows(repeated, r.context_length, periods, rng)
        both = np.concatenate([text, tokens]), np.concatenate([text_targets, targets])
        return tuple(torch.from_numpy(x) for x in both)


# ------------------------------------------------------------------------------------------------- training


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden states, without ever holding all logits: gradients are made on the way."""

    CHUNK = 512

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        total, n = 0.0, len(hidden)
        w = weight.detach().to(dtype)
        g_hidden, g_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for part in torch.arange(n).split(_ChunkedCrossEntropy.CHUNK):
            part = slice(int(part[0]), int(part[-1]) + 1)
            h = hidden[part].detach().to(dtype)
            logits = (h @ w.T).float()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, targets[part, None])
            p = logits.exp_()  # in place: one exponential and few passes over the largest array there is
            z = p.sum(1, keepdim=True)
            total += (z.log() - right).sum()
            p /= z
            p.scatter_add_(1, targets[part, None], torch.full_like(z, -1.0))
            p = p.to(dtype)
            g_hidden[part] = (p @ w).to(g_hidden.dtype)
            g_weight += (p.T @ h).to(g_weight.dtype)
        ctx.save_for_backward(g_hidden / n, g_weight / n)
        return total / n

    @staticmethod
    def backward(ctx, grad):
        g_hidden, g_weight = ctx.saved_tensors
        return grad * g_hidden, grad * g_weight, None, None


def loss_of(
    model: PreTrainedModel, tokens: Int[Tensor, "rows context"], targets: Int[Tensor, "rows context"], dtype: torch.dtype
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy (nats) over the positions with a target."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.base_model(input_ids=tokens, use_cache=False)[0]
    wanted = targets != IGNORE
    head = model.get_output_embeddings().weight
    return _ChunkedCrossEntropy.apply(hidden[wanted].float(), head, targets[wanted], dtype)


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate as a share of its peak: linear warm-up, plateau, cosine decay to 5 %."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    start = recipe.steps * (1 - recipe.decay_share)
    if step < start:
        return 1.0
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - start) / (recipe.steps - start)))


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    decayed = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    decayed = list({id(p): p for p in decayed}.values())  # tied embeddings once
    plain = [p for p in model.parameters() if id(p) not in {id(d) for d in decayed}]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _save_checkpoint(folder: Path, step: int, model, optimizer, losses: list) -> None:
    """Written beside the old one, then renamed: a kill leaves one of the two."""
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    by_id = {id(p): name for name, p in model.named_parameters()}
    state = {f"{by_id[id(p)]}|{k}": v for p, s in optimizer.state.items() for k, v in s.items()}
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, new / "model.safetensors")
    save_file({k: v.clone() for k, v in state.items()}, new / "optimizer.safetensors")
    (new / "state.json").write_text(json.dumps({"step": step, "losses": losses}))
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _load_checkpoint(folder: Path, model, optimizer) -> tuple[int, list]:
    state = json.loads((folder / "state.json").read_text())
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    moments = load_file(folder / "optimizer.safetensors")
    for name, p in model.named_parameters():
        optimizer.state[p] = {k.split("|")[1]: v for k, v in moments.items() if k.split("|")[0] == name}
    return state["step"], state["losses"]


def train(
    recipe: Recipe, documents: list[Int[np.ndarray, " n"]], checkpoint: Path, *, device: str = "cpu",
    every: int = 200, stop_at: int | None = None,
) -> tuple[PreTrainedModel, list[dict]]:
    """Train by the recipe on token ids of documents; resumes from `checkpoint`, written every `every` steps.

    Returns the model and its training losses (nats, on text and repeats together, mean of 50 steps each).
    `stop_at` ends early, as a kill would, but after writing a checkpoint.
    """
    scans.install()
    model = build(recipe).to(device).train()
    optimizer = _optimizer(model, recipe)
    batches = Batches(documents, recipe)
    step, losses = 0, []
    if (checkpoint / "state.json").exists():
        step, losses = _load_checkpoint(checkpoint, model, optimizer)
    dtype = models.fast_dtype(device)
    recent, last = [], stop_at or recipe.steps
    for step in (bar := tqdm(range(step, last), initial=step, total=last, mininterval=10)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(step, recipe)
        tokens, targets = (x.to(device) for x in batches(step))
        loss = loss_of(model, tokens, targets, dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            losses.append({"step": step + 1, "loss": round(float(np.mean(recent)), 4)})
            bar.set_postfix(loss=losses[-1]["loss"], refresh=False)
            recent = []
        if (step + 1) % every == 0 or step + 1 == last:
            _save_checkpoint(checkpoint, step + 1, model, optimizer, losses)
    return model.eval(), losses


def make(name: str, profile: Profile) -> dict:
    """Train one model of the zoo into data/models/<name> and measure it; returns its record."""
    recipe = RECIPES[name]
    documents = corpus.docstring_tokens(profile, "train")
    device = models.device_of(profile)
    model, losses = train(recipe, documents, CHECKPOINTS / name, device=device)
    record = {"recipe": asdict(recipe), "tokens": recipe.tokens}
    export(model, MODELS / name, record | {"training_losses": losses})
    quality = models.quality(models.load(name, profile), corpus.load_blocks(profile, "held_out", 100_000))
    record |= {"quality": quality, "training_losses": losses}
    (MODELS / name / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main(
    names: Annotated[list[str] | None, typer.Argument(help="models to train: " + ", ".join(RECIPES))] = None,
    all_missing: Annotated[bool, typer.Option("--all", help="every mini model that is not there yet")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all")] = 0,
) -> None:
    """Train mini models into data/models."""
    if threads:
        import numba

        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
    if all_missing:
        names = [n for n in RECIPES if n.startswith("mini-") and not (MODELS / n / "training.json").exists()]
    unknown = [name for name in names or [] if name not in RECIPES]
    if unknown or names is None:
        typer.echo(f"{'unknown model ' + unknown[0] if unknown else 'name a model'}; the zoo has {', '.join(RECIPES)}.")
        raise typer.Exit(2)
    for name in names:
        print(name, make(name, get_profile("mini"))["quality"])


if __name__ == "__main__":
    typer.run(main)
