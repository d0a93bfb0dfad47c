"""What the models of the mini zoo are made of: sizes, seeds, training settings, and their Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from lib.corpus import TOKENIZER, VOCABULARY
from lib.profiles import DATA

MODELS = DATA / "models"


@dataclass(frozen=True)
class Recipe:
    """How one mini model is made."""

    architecture: str
    n_layers: int
    seed: int = 0
    d_model: int = 128
    context_length: int = 256
    batch_rows: int = 32
    steps: int = 3_200
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.1
    repeat_share_start: float = 0.5
    repeat_share_end: float = 0.2
    longest_period: int = 128

    @property
    def tokens(self) -> int:
        """Tokens seen in training."""
        return self.steps * self.batch_rows * self.context_length


RECIPES = {
    "mini-pythia": Recipe("pythia", n_layers=4),
    "mini-pythia-seed1": Recipe("pythia", n_layers=4, seed=1),
    "mini-mamba": Recipe("mamba", n_layers=8, learning_rate=4e-3, steps=3_400),
    "mini-rwkv": Recipe("rwkv", n_layers=4, learning_rate=4e-3),
    "smoke-pythia": Recipe("pythia", n_layers=2, d_model=64),
    "smoke-pythia-seed1": Recipe("pythia", n_layers=2, d_model=64, seed=1),
    "smoke-mamba": Recipe("mamba", n_layers=4, d_model=64),
    "smoke-rwkv": Recipe("rwkv", n_layers=2, d_model=64),
}


def build(recipe: Recipe) -> PreTrainedModel:
    """An untrained Hugging Face model of the recipe's architecture and seed."""
    torch.manual_seed(recipe.seed)
    common = dict(
        vocab_size=VOCABULARY, hidden_size=recipe.d_model, num_hidden_layers=recipe.n_layers,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )
    if recipe.architecture == "pythia":
        width = 4 * recipe.d_model
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **common, num_attention_heads=4, intermediate_size=width, rotary_pct=0.25,
                max_position_embeddings=2 * recipe.context_length, tie_word_embeddings=False,
            )
        )
    if recipe.architecture == "mamba":
        return MambaForCausalLM(MambaConfig(**common, state_size=16, initializer_range=0.05, use_cache=False))
    config = RwkvConfig(**common, context_length=2 * recipe.context_length, rescale_every=0, use_cache=False)
    return RwkvForCausalLM(config)


def export(model: PreTrainedModel, folder: Path, record: dict) -> None:
    """Write a Hugging Face folder: fp16 safetensors, tokenizer, training.json."""
    model.half().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder / file)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def random_checkpoint(name: str, folder: Path) -> None:
    """A random-weight checkpoint of a recipe (the smoke profile's models)."""
    export(build(RECIPES[name]), folder, {"recipe": asdict(RECIPES[name]), "trained": False})
