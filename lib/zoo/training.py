"""Trains the mini zoo: small language models of three real architectures, on real text, on a CPU.

``python -m lib.zoo mini-pythia`` trains one model, ``python -m lib.zoo --all`` what is missing; a killed run goes
on at its last checkpoint with the same result. On a GPU the same command uses it. ``tokenizer`` trains the tokenizer
again; ``text`` reads the packages' documentation again and says how the shipped text was made of it. `lib.zoo.rows`
says what the models learn from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from lib import corpus, models
from lib.circuits.abilities import abilities_of
from lib.circuits.ioi import sentences
from lib.models import scans
from lib.models.recipes import MODELS, RECIPES, TOKENIZER, Recipe, build, export
from lib.workbook import model_store, texts
from lib.workbook.profiles import DATA, Profile, get_profile
from lib.zoo import documentation
from lib.zoo.rows import IGNORE, Batches

CHECKPOINTS = DATA / "cache" / "zoo"  # outside the profiles' caches: clearing those must not cost hours
MEASURED_EVERY = 200  # steps
TOKENIZER_SENTENCES = 20_000  # so many that every name in them becomes one token


# ------------------------------------------------------------------------------------------------- training


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden states, without ever holding all logits: gradients are made on the way.

    The last chunk is filled up with rows that do not count, for every new shape has its product compiled anew.
    """

    CHUNK = 512

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        total, n = 0.0, len(hidden)
        w = weight.detach().to(dtype)
        missing = -n % _ChunkedCrossEntropy.CHUNK
        filled, targets = F.pad(hidden.detach(), (0, 0, 0, missing)), F.pad(targets, (0, missing))
        g_hidden, g_weight = torch.empty_like(filled), torch.zeros_like(weight)
        for start in range(0, len(filled), _ChunkedCrossEntropy.CHUNK):
            part = slice(start, start + _ChunkedCrossEntropy.CHUNK)
            counted = min(_ChunkedCrossEntropy.CHUNK, n - start)
            h = filled[part].to(dtype)
            logits = (h @ w.T).float()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, targets[part, None])
            p = logits.exp_()  # in place: one exponential and few passes over the largest array there is
            z = p.sum(1, keepdim=True)
            total += (z.log() - right)[:counted].sum()
            p /= z
            p.scatter_add_(1, targets[part, None], torch.full_like(z, -1.0))
            p[counted:] = 0
            p = p.to(dtype)
            g_hidden[part] = (p @ w).to(g_hidden.dtype)
            g_weight += (p.T @ h).to(g_weight.dtype)
        ctx.save_for_backward(g_hidden[:n] / n, g_weight / n)
        return total / n

    @staticmethod
    def backward(ctx, grad):
        g_hidden, g_weight = ctx.saved_tensors
        return grad * g_hidden, grad * g_weight, None, None


def loss_of(
    model: PreTrainedModel,
    tokens: Int[Tensor, "rows context"],
    targets: Int[Tensor, "rows context"],
    dtype: torch.dtype,
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


def _optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or, where the recipe says so, Muon for the layers' matrices and AdamW for the rest.

    Only matrices decay. Each group of parameters keeps the peak of its learning rate as `peak`.
    """
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    matrices = list({id(p): p for p in matrices}.values())  # tied embeddings once
    plain = [p for p in model.parameters() if id(p) not in {id(m) for m in matrices}]
    by_muon = [p for p in matrices if recipe.muon_learning_rate and id(p) not in ends]
    decayed = [p for p in matrices if id(p) not in {id(m) for m in by_muon}]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)]
    if by_muon:
        how = dict(weight_decay=recipe.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        optimizers.append(torch.optim.Muon(by_muon, lr=recipe.muon_learning_rate, **how))
    for group in _groups(optimizers):
        group["peak"] = group["lr"]
    return optimizers


def _groups(optimizers: list[torch.optim.Optimizer]) -> list[dict]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _save_checkpoint(folder: Path, step: int, model, optimizers, losses: list) -> None:
    """Written beside the old one, then renamed: a kill leaves one of the two."""
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    by_id = {id(p): name for name, p in model.named_parameters()}
    states = [item for optimizer in optimizers for item in optimizer.state.items()]
    state = {f"{by_id[id(p)]}|{k}": v for p, moments in states for k, v in moments.items()}
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, new / "model.safetensors")
    save_file({k: v.clone() for k, v in state.items()}, new / "optimizer.safetensors")
    (new / "state.json").write_text(json.dumps({"step": step, "losses": losses}))
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _load_checkpoint(folder: Path, model, optimizers) -> tuple[int, list]:
    state = json.loads((folder / "state.json").read_text())
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    moments = load_file(folder / "optimizer.safetensors")
    name_of = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[p] = {k.split("|")[1]: v for k, v in moments.items() if k.split("|")[0] == name_of[id(p)]}
    return state["step"], state["losses"]


def train(
    recipe: Recipe,
    documents: list[Int[np.ndarray, " n"]],
    checkpoint: Path,
    *,
    tokenizer=None,
    device: str = "cpu",
    every: int = 200,
    stop_at: int | None = None,
    measure: Callable[[PreTrainedModel], dict] | None = None,
) -> tuple[PreTrainedModel, list[dict]]:
    """Train by the recipe on token ids of documents; resumes from `checkpoint`, written every `every` steps.

    Returns the model and its training losses (nats, on all rows together, mean of 50 steps each), with what `measure`
    says of the model every `MEASURED_EVERY` steps. `tokenizer` is asked for where the recipe has sentences.
    `stop_at` ends early, as a kill would, but after writing a checkpoint.
    """
    scans.install()
    model = build(recipe).to(device).train()
    optimizers = _optimizers(model, recipe)
    batches = Batches(documents, recipe, tokenizer)
    step, losses = 0, []
    if (checkpoint / "state.json").exists():
        step, losses = _load_checkpoint(checkpoint, model, optimizers)
    dtype = models.fast_dtype(device)
    recent, last = [], stop_at or recipe.steps
    for step in (bar := tqdm(range(step, last), initial=step, total=last, mininterval=10)):
        for group in _groups(optimizers):
            group["lr"] = group["peak"] * rate(step, recipe)
        tokens, targets = (x.to(device) for x in batches(step))
        loss = loss_of(model, tokens, targets, dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            losses.append({"step": step + 1, "loss": round(float(np.mean(recent)), 4)})
            bar.set_postfix(loss=losses[-1]["loss"], refresh=False)
            recent = []
            if measure and (step + 1) % MEASURED_EVERY == 0:
                losses[-1] |= measure(model.eval())
                model.train()
        if (step + 1) % every == 0 or step + 1 == last:
            _save_checkpoint(checkpoint, step + 1, model, optimizers, losses)
    return model.eval(), losses


def make(name: str, profile: Profile) -> dict:
    """Train one model of the zoo into data/models/<name>.

    Returns what it can do (`circuits.abilities_of`), as it is kept there.
    """
    recipe, device = RECIPES[name], model_store.device_of(profile)
    tokenizer = texts.load_tokenizer(profile)
    held_out = texts.load_blocks(profile, "held_out", 100_000)

    def measure(model: PreTrainedModel, few: bool = True) -> dict:
        logits = lambda tokens: model(input_ids=tokens.to(device), use_cache=False).logits  # noqa: E731
        sizes = dict(gaps=(8,), periods=(8, 64), n_samples=32) if few else {}
        blocks = held_out.take(5_000) if few else held_out
        return abilities_of(logits, tokenizer, blocks, texts.unseen_sentences(64 if few else 256), **sizes)

    model, losses = train(
        recipe,
        texts.document_tokens(profile, "train"),
        CHECKPOINTS / name,
        tokenizer=tokenizer.backend_tokenizer,
        device=device,
        measure=measure,
    )
    record = {"recipe": asdict(recipe), "tokens": recipe.tokens, "abilities": measure(model, few=False)}
    export(model, MODELS / name, record | {"training_losses": losses})
    return record["abilities"]


def make_tokenizer(folder: Path = TOKENIZER) -> None:
    """Train a tokenizer on the training text and on sentences of two names, each of whose names becomes one token."""
    training = [text for text in texts.documents() if corpus.split_of(text) == "train"]
    drawn = sentences(texts.sentence_parts(), TOKENIZER_SENTENCES, np.random.default_rng(0))
    corpus.train_tokenizer([*training, *(sentence.text for sentence in drawn)], folder)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="models to train, or `text`, or `tokenizer`")] = None,
    all_missing: Annotated[bool, typer.Option("--all", help="every mini model that is not there yet")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all")] = 0,
) -> None:
    """Train mini models into data/models, or say how their text was made."""
    if threads:
        import numba

        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
    if names == ["text"]:
        print(documentation.remake())
        return
    if names == ["tokenizer"]:
        make_tokenizer()
        return
    if all_missing:
        names = [n for n in RECIPES if n.startswith("mini-") and not (MODELS / n / "training.json").exists()]
    unknown = [name for name in names or [] if name not in RECIPES]
    if unknown or names is None:
        what = f"unknown model {unknown[0]}" if unknown else "name a model"
        typer.echo(f"{what}; the zoo has {', '.join(RECIPES)}.")
        raise typer.Exit(2)
    for name in names:
        print(name, make(name, get_profile("mini")))
