"""Judges of features: how complex is what a feature reacts to, and how consistently does it do so (W §5.1, App. E).

Both judges read the same thing, a feature's ten highest snippets. `RuleJudge` is an offline stand-in with fixed rules;
`lib.interpret.chat_judge` asks a language model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from lib.interpret.snippets import Snippet, TopPlaces

SCORES = (1, 2, 3, 4, 5)
ASPECTS = ("complexity", "monosemanticity")
RUBRICS = {  # App. E's two scales, in our own words
    "complexity": {
        1: "one token or part of a word, always the same, e.g. the token 'increase'",
        2: "one word in several spellings, cases or languages, e.g. 'URL', 'url', 'URLs'",
        3: "a phrase, a category or a place in a structure, e.g. the colon of a list's entry",
        4: "something about the meaning or the role of a passage, e.g. return statements",
        5: "a theme that unites many kinds of context; also where no simpler description can be found",
    },
    "monosemanticity": {
        1: "no pattern that can be seen",
        2: "a loose theme, or two or more unrelated patterns side by side",
        3: "a pattern, but several of the ten do not fit it",
        4: "a clear pattern with one or two exceptions",
        5: "a clear pattern without exceptions",
    },
}


@dataclass(frozen=True)
class Example:
    """One snippet as text."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    centre: int


@dataclass(frozen=True)
class Score:
    """1 to 5 each; None where a judge gave no valid answer."""

    complexity: int | None
    monosemanticity: int | None


class Judge(Protocol):
    """Whoever scores features."""

    name: str

    def score(self, features: Sequence[Sequence[Example]]) -> list[Score]:
        """A score for each feature, from its snippets, highest first."""
        ...


def examples_of(snippets: Sequence[Snippet], words: Sequence[str]) -> list[Example]:
    """Snippets as text, token by token; `words` is `interpret.vocabulary`."""
    return [
        Example(
            tuple(map(words.__getitem__, snippet.tokens.tolist())),
            tuple(a and round(a, 2) for a in snippet.activations.tolist()),  # most are 0, and rounding takes long
            snippet.centre,
        )
        for snippet in snippets
    ]


def examples_at(
    places: Sequence[TopPlaces], layers: pd.Series, indices: pd.Series, words: Sequence[str]
) -> list[list[Example]]:
    """What a judge reads of some features, each given by its layer and index."""
    return [examples_of(places[layer].snippets(index), words) for layer, index in zip(layers, indices, strict=True)]


class RuleJudge:
    """A stand-in for a language model: counts of tokens and of their neighbours, and fixed thresholds.

    It sees spelling, not meaning. The pattern is the best of four: the same token; the same token but for case, spaces
    and endings; the same neighbour before or after; the same kind of token (digits, brackets and signs, names with
    capitals, words). Its share among the snippets is the consistency; what kind of pattern it is, the complexity.
    """

    name = "rule-based stand-in"
    consistent = 0.7  # share of the snippets from which on a pattern explains a feature

    def score(self, features: Sequence[Sequence[Example]]) -> list[Score]:
        return [self._score(examples) for examples in features]

    def _score(self, examples: Sequence[Example]) -> Score:
        if not examples:
            return Score(None, None)
        shares = pattern_shares(examples)
        return Score(self._complexity(shares), self._monosemanticity(shares))

    def _complexity(self, shares: dict[str, float]) -> int:
        if shares["variants"] >= self.consistent:
            if shares["neighbour"] >= self.consistent and shares["is_sign"] >= self.consistent:
                return 3  # a sign means something only where it stands
            return 1 if shares["token"] >= self.consistent else 2
        if max(shares["neighbour"], shares["two_tokens"]) >= self.consistent:
            return 3
        return 4 if shares["kind"] >= self.consistent else 5

    def _monosemanticity(self, shares: dict[str, float]) -> int:
        strict = max(shares["variants"], shares["neighbour"])
        loose = max(shares["two_tokens"], shares["kind"])
        if strict >= 0.95:
            return 5
        if strict >= self.consistent:
            return 4
        if strict >= 0.5:
            return 3
        return 2 if loose >= self.consistent or strict >= 0.3 else 1


def pattern_shares(examples: Sequence[Example]) -> dict[str, float]:
    """What share of the snippets the commonest token, variant, neighbour, pair of tokens and kind of token has."""
    centres = [example.tokens[example.centre] for example in examples]
    variants = [variant(token) for token in centres]
    before = [variant("".join(example.tokens[: example.centre][-1:])) for example in examples]
    after = [variant("".join(example.tokens[example.centre + 1 :][:1])) for example in examples]
    kinds = [kind_of(token) for token in centres]
    return {
        "token": _top_share(centres),
        "variants": _top_share(variants),
        "two_tokens": _top_share(variants, 2),
        "neighbour": max(_top_share(before), _top_share(after)),
        "kind": _top_share(kinds),
        "is_sign": kinds.count("sign") / len(kinds),
    }


def _top_share(values: list[str], n: int = 1) -> float:
    """Share of the `n` commonest values."""
    return sum(sorted(map(values.count, set(values)))[-n:]) / len(values)


@cache
def variant(token: str) -> str:
    """A token without what spelling changes: spaces around it, case, a plural s."""
    bare = token.strip(" ").lower()
    return bare[:-1] if len(bare) > 3 and bare.endswith("s") else bare


@cache
def kind_of(token: str) -> str:
    """number, sign, capitals or word."""
    bare = token.strip()
    if re.fullmatch(r"[\d.]*\d[\d.]*", bare):
        return "number"
    if not any(character.isalnum() for character in bare):
        return "sign"
    return "capitals" if bare[0].isupper() else "word"


# ------------------------------------------------------------------------------------------- judging a judge


def read_labels(file: Path) -> pd.DataFrame:
    """Labelled features: a row each, with complexity, monosemanticity and examples.

    `file` is a table whose column `snippets` holds a JSON list of examples.
    """
    labels = pd.read_csv(file)
    return labels.assign(examples=labels.pop("snippets").map(_read_examples))


def _read_examples(text: str) -> list[Example]:
    return [Example(tuple(s["tokens"]), tuple(s["activations"]), s["centre"]) for s in json.loads(text)]


def agreement(ours: Sequence[int | None], theirs: Sequence[int | None]) -> dict[str, float]:
    """Two judges' scores of the same features: quadratically weighted kappa, share equal, share within one, n."""
    pairs = np.array([(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None])
    off = np.abs(pairs[:, 0] - pairs[:, 1])
    kappa = cohen_kappa_score(*pairs.T, labels=list(SCORES), weights="quadratic")
    return {
        "weighted_kappa": float(kappa),
        "equal": float((off == 0).mean()),
        "within_one": float((off <= 1).mean()),
        "n": len(off),
    }
