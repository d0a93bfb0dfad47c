"""Training of all SAEs of a model in one pass over the text (paper, App. A)."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from numba import get_num_threads
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lib.corpus import Blocks
from lib.files import atomic_write
from lib.models import resid_post
from lib.models.activations import ShuffleBuffer, model_device
from lib.sae.autoencoder import SAE, SaeInfo, StepStats, sae_type
from lib.sae.config import BETA1, BETA2, EPS, SAEConfig
from lib.sae.dense_step import dense_step

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHECKPOINT = "state"
STATE = "state.json"  # of a checkpoint; written last
CHECKPOINT_SECONDS = 120
LOGGED_STEPS = 200  # rows of history per SAE
SHOWN = ("loss", "l0", "explained_variance")
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's state
Step = Callable[[SAE, torch.optim.Adam, Tensor, float], StepStats]
SPARSE_SHARE = 1 / 10  # where a larger share of the features is active, the dense step is the faster one
IN_A_ROW = 32  # steps that one SAE takes before the next one's turn: its weights stay in the processor's cache
L1_GAIN = 0.01  # how fast λ follows L0: a factor (L0 / target)^0.01 per step


def constants(config: SAEConfig) -> dict[str, float]:
    """What, beside a configuration, decides what comes out of a training: part of its artifact's key."""
    of_all = {"l1_gain": L1_GAIN, "sparse_share": SPARSE_SHARE, "logged_steps": LOGGED_STEPS}
    return of_all | sae_type(config.architecture).constants


@torch.enable_grad()  # whoever asks for an SAE while only evaluating gets it trained all the same
def train_saes(
    model: TransformerBridge, blocks: Blocks, config: SAEConfig, seeds: Sequence[int] = (0,),
    layers: Sequence[int] | None = None, checkpoint_dir: Path | str | None = None, progress: bool = True,
    typical: Mapping[int, float] | None = None,
) -> tuple[list[SAE], pd.DataFrame]:  # fmt: skip
    """Train one SAE per layer (None: all) and SAE seed on `config.tokens` tokens of `blocks`.

    All SAEs see the same batches: SAE seeds differ in nothing but the initial weights. Returns the SAEs, by seed and
    layer, acting on raw activations, and the history (columns layer, seed, step, tokens, loss, l0,
    explained_variance, l1). With a `checkpoint_dir`, an interrupted call goes on where it was when called again.
    With `typical` (`lib.models.typical_norms`), activations that are far longer are shortened: else a few tokens would
    be most of the scale, the variance and the loss.

    Raises `ValueError` for an SAE type that is not known, and if the checkpoint belongs to other settings,
    `FloatingPointError` if a loss is not finite.
    """
    layers = tuple(range(model.cfg.n_layers)) if layers is None else tuple(layers)
    run = _Run(model, blocks, config, tuple(seeds), layers, typical)
    checkpoint = Path(checkpoint_dir) / CHECKPOINT if checkpoint_dir else None
    if checkpoint and (found := _newest(checkpoint)):
        run.restore(found)
    saved = time.monotonic()
    bar = tqdm(total=run.steps, initial=run.step, desc="SAEs", unit="step", disable=not progress)
    with bar, ThreadPoolExecutor(max(1, len(run.workers)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while run.step < run.steps:
            run.train_on_refill(bar, pool)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                run.save(checkpoint)
                saved = time.monotonic()
    return run.finish(), pd.DataFrame(run.history)


def new_adam(sae: SAE) -> torch.optim.Adam:
    """An optimiser for an SAE whose state is there before the first step: steps that are not torch's write to it."""
    adam = torch.optim.Adam(sae.parameters(), betas=(BETA1, BETA2), eps=EPS, fused=True)
    for p in sae.parameters():
        moments = {name: torch.zeros_like(p) for name in MOMENTS}
        adam.state[p] = {"step": torch.zeros((), device=p.device), **moments}
    return adam


class _Trainee:
    """One SAE in training. It sees activations times `scale`, whose mean norm is sqrt(d_model)."""

    def __init__(self, sae: SAE, config: SAEConfig) -> None:
        self.sae, self.config = sae, config
        self.dense = sae.step_by_hand or dense_step
        self.adam = new_adam(sae)
        self.scale = self.variance = 0.0
        self.l1, self.l0 = config.l1_coefficient, math.inf

    def measure(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Take the scale, and the variance that explained_variance is relative to, from the first activations."""
        self.scale = math.sqrt(x.shape[1]) / float(x.norm(dim=1).mean())
        self.variance = float(x.var(0, correction=0).sum()) * self.scale**2

    def train_on(self, x: Float[Tensor, "batch d_model"], step: int, steps: int, sparse: Step | None) -> StepStats:
        """One step on scaled activations.

        Rate and λ rise over the warm-up; in the decay the rate falls and λ no longer follows L0.
        """
        rise = min(1, (step + 1) / (self.config.warmup * steps + 1))
        fall = min(1, (steps - step) / (self.config.decay * steps + 1))
        self.adam.param_groups[0]["lr"] = self.config.learning_rate * rise * fall
        take = sparse if sparse and self.l0 < SPARSE_SHARE * self.sae.d_sae else self.dense
        stats = take(self.sae, self.adam, x, self.l1 * rise)
        self.l0 = stats.l0
        target = self.config.target_l0
        if target and self.sae.adapts_l1 and rise == fall == 1:
            self.l1 = self.l1 * ((stats.l0 + 1) / (target + 1)) ** L1_GAIN
        return stats

    def train_on_all(
        self, batches: Float[Tensor, "batches batch d_model"], first: int, steps: int, sparse: Step | None
    ) -> StepStats:
        """A step on each batch; `first` is the number of the first. Returns the last step's statistics."""
        for step, batch in enumerate(batches, first):
            stats = self.train_on(batch, step, steps, sparse)
        return stats

    def record(self, step: int, stats: StepStats) -> dict[str, float]:
        """A row of the history; `step` has just been done."""
        mse, sparsity, l0 = map(float, stats)
        if not math.isfinite(mse):
            raise FloatingPointError(f"the SAE of layer {self.sae.info.layer} diverged at step {step}.")
        return {
            "layer": self.sae.info.layer,
            "seed": self.sae.info.seed,
            "step": step,
            "tokens": step * self.config.batch_size,
            "loss": mse + float(self.l1) * sparsity,
            "l0": l0,
            "explained_variance": 1 - mse / self.variance,
            "l1": float(self.l1),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, what else the type counts, and Adam's moments, by name; views, to be saved or written to."""
        named = {name: p.detach() for name, p in self.sae.named_parameters()} | dict(self.sae.named_buffers())
        moments = {f"{n}.{m}": self.adam.state[p][m] for n, p in self.sae.named_parameters() for m in MOMENTS}
        return named | moments

    def state(self) -> dict[str, float]:
        """The rest of the state, as numbers."""
        return {"l1": float(self.l1), "l0": float(self.l0), "scale": self.scale, "variance": self.variance}

    def finish(self) -> SAE:
        self.sae.fold_scale(self.scale)
        self.sae.info.training |= {"scale": self.scale, "l1_final": float(self.l1)}
        return self.sae.requires_grad_(False)


def _newest(checkpoint: Path) -> Path | None:
    """The checkpoint's folder, or the one that a kill kept from taking its place after it was written whole."""
    return next((path for path in (checkpoint.with_suffix(".new"), checkpoint) if (path / STATE).exists()), None)


class _Run:
    """All SAEs of one model in training; what a checkpoint holds."""

    def __init__(
        self, model: TransformerBridge, blocks: Blocks, config: SAEConfig, seeds: tuple[int, ...],
        layers: tuple[int, ...], typical: Mapping[int, float] | None,
    ) -> None:  # fmt: skip
        self.steps = max(1, config.tokens // config.batch_size)
        self.log_every = max(1, self.steps // LOGGED_STEPS)
        self.step, self.history = 0, []
        device, name, d_model = model_device(model), str(model.cfg.model_name), model.cfg.d_model
        training = config.model_dump() | {"context_length": blocks.tokens.shape[1]}
        of_run = {"model_name": name, "seeds": list(seeds), "layers": list(layers), "blocks": len(blocks)}
        # Not the norms themselves: their last digits depend on the number of threads, which may change on the way.
        self.identity = of_run | training | ({"typical": list(typical)} if typical else {})
        cls = sae_type(config.architecture)
        self.trainees = []
        for seed, layer in product(seeds, layers):
            info = SaeInfo(model_name=name, hook_name=resid_post(layer), layer=layer, seed=seed, training=training)
            self.trainees.append(_Trainee(cls.from_config(d_model, config, info).to(device), config))
        size = (config.batch_size, d_model, config.expansion * d_model)
        self.sparse = cls.sparse_step(*size) if cls.sparse_step and device.type == "cpu" else None
        threads = get_num_threads()
        share = self.sparse and 1 < threads <= len(self.trainees)  # else a step has the threads to itself
        self.workers = [cls.sparse_step(*size, parallel=False) for _ in range(threads)] if share else []
        self.make_buffer = partial(
            ShuffleBuffer, model, blocks, layers, buffer_tokens=config.buffer_tokens,
            batch_size=config.batch_size, batch_blocks=config.batch_blocks, seed=config.seed, typical=typical,
        )  # fmt: skip
        self.buffer = self.make_buffer()

    def train_on_refill(self, bar: tqdm, pool: Executor) -> None:
        """Train on one refill of the buffer.

        No thread makes the next one meanwhile: for mini it gained nothing, and for the paper's Mamba it takes 24 GB.
        """
        refill = self.buffer.next_refill()
        n_batches = min(len(refill[self.trainees[0].sae.info.layer]), self.steps - self.step)
        if self.step == 0 and n_batches:  # the first refill of a small buffer may hold less than a batch
            for trainee in self.trainees:
                trainee.measure(refill[trainee.sae.info.layer].flatten(0, 1))
        for layer, scale in {trainee.sae.info.layer: trainee.scale for trainee in self.trainees}.items():
            refill[layer] *= scale  # all seeds of a layer measured the same
        first = 0
        while first < n_batches:
            n = min(IN_A_ROW, self.log_every - self.step % self.log_every, n_batches - first)
            stats = self.train_on_batches({layer: x[first : first + n] for layer, x in refill.items()}, pool)
            self.step += n
            if self.step % self.log_every == 0 or self.step == self.steps:
                rows = [trainee.record(self.step, s) for trainee, s in zip(self.trainees, stats)]
                self.history += rows
                shown = {key: f"{sum(row[key] for row in rows) / len(rows):.3g}" for key in SHOWN}
                bar.set_postfix(shown, refresh=False)
            bar.update(n)
            first += n

    def train_on_batches(
        self, batches: Mapping[int, Float[Tensor, "batches batch d_model"]], pool: Executor
    ) -> list[StepStats]:
        """A step of every SAE on each batch of its layer, one SAE after the other, in each thread its share of them.

        Returns the last step's statistics.
        """

        def steps(trainees: list[_Trainee], sparse: Step | None) -> list[StepStats]:
            return [t.train_on_all(batches[t.sae.info.layer], self.step, self.steps, sparse) for t in trainees]

        n = len(self.workers)
        if not n:
            return steps(self.trainees, self.sparse)
        shares = list(pool.map(steps, [self.trainees[k::n] for k in range(n)], self.workers))
        return [shares[k % n][k // n] for k in range(len(self.trainees))]

    def save(self, folder: Path) -> None:
        """Write everything that going on needs, a file per SAE: memory holds the state of one of them twice."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "refills_done": self.buffer.refills_done,
            "history": self.history,
            "trainees": [trainee.state() for trainee in self.trainees],
        }
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        for k, trainee in enumerate(self.trainees):
            tensors = {name: x.cpu().contiguous() for name, x in trainee.tensors().items()}
            atomic_write(new / f"{k}.safetensors", save(tensors))
        atomic_write(new / STATE, json.dumps(state))
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)

    def restore(self, folder: Path) -> None:
        """Go on from a folder that `save` wrote."""
        state = json.loads((folder / STATE).read_text())
        if state["identity"] != self.identity:
            raise ValueError(f"{folder} belongs to a training with other settings: delete it or use another folder.")
        for k, (trainee, numbers) in enumerate(zip(self.trainees, state["trainees"])):
            with safe_open(folder / f"{k}.safetensors", "pt") as file:
                for name, x in trainee.tensors().items():
                    x.copy_(file.get_tensor(name))
            for p in trainee.sae.parameters():
                trainee.adam.state[p]["step"].fill_(state["step"])
            vars(trainee).update(numbers)
        self.step, self.history = state["step"], state["history"]
        self.buffer = self.make_buffer(refills_done=state["refills_done"])

    def finish(self) -> list[SAE]:
        return [trainee.finish() for trainee in self.trainees]
