"""Induction prompts [A][B] … [A] of random tokens, and their corrupted twins (W §6.1, App. G)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

ROLES = ("A1", "B1", "B1+1", "B1+2", "B1+3")

Tokens = Int[Tensor, "samples tokens"]


@dataclass(frozen=True)
class InductionPrompts:
    """BOS [A][B] filler [A]; the answer to all of them is B, but for the corrupted ones."""

    clean: Tokens
    corrupt_b: Tokens
    """[A][B′] … [A]"""
    corrupt_a: Tokens
    """[A′][B] … [A]"""
    random: Tokens
    """Other random tokens everywhere, none of them twice."""
    target: Int[Tensor, "samples"]
    """The token B."""

    def corrupted(self, kind: str) -> Tokens:
        """The prompts in which "B′", "A′" or everything ("random") is replaced."""
        return {"B′": self.corrupt_b, "A′": self.corrupt_a, "random": self.random}[kind]

    def first(self, n: int) -> InductionPrompts:
        """The first n of them."""
        return InductionPrompts(*(getattr(self, field.name)[:n] for field in fields(self)))

    @property
    def distance(self) -> int:
        """How many positions lie between the two A."""
        return self.clean.shape[1] - 3

    @property
    def positions(self) -> dict[str, int]:
        """Where A1, B1 and the tokens after it are."""
        return {role: position for position, role in enumerate(ROLES, start=1)}


def induction_prompts(
    distance: int, vocabulary: int, seed: int, n_samples: int = 128, bos: int = 0
) -> InductionPrompts:
    """Prompts with `distance` positions between the two A; A, B, A′, B′ and the filler are different tokens.

    Raises `ValueError` for a distance that leaves no room for B1+3 before the second A.
    """
    if distance < len(ROLES):
        raise ValueError(f"distance={distance}: at least {len(ROLES)} positions lie between the two A.")
    rng = np.random.default_rng([seed, distance])
    length = distance + 3  # of a prompt, with BOS
    rows = np.stack([rng.choice(vocabulary - 2, 2 * length - 1, replace=False) + 2 for _ in range(n_samples)])
    drawn, other = torch.from_numpy(rows).long().split([length, length - 1], dim=1)
    a, b, other_a, other_b, filler = drawn[:, :1], drawn[:, 1:2], drawn[:, 2:3], drawn[:, 3:4], drawn[:, 4:]
    start = torch.full((n_samples, 1), bos)
    prompt = lambda first, second: torch.cat([start, first, second, filler, a], dim=1)  # noqa: E731
    return InductionPrompts(
        prompt(a, b), prompt(a, other_b), prompt(other_a, b), torch.cat([start, other], dim=1), b[:, 0]
    )
