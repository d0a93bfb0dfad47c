"""What an answer is compared with, and what is wrong with one that differs: its form first, then its value."""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch

TOLERANCE = 2e-3  # relative; an answer rounded to three digits is right
EXACT = 1e-6  # a mistake may lie nearer to the right answer than rounding does
NO_NOISE = 1e-12
NOISE = 1e-7  # of logits of a model with random weights, whose float32 sums depend on the processor
CLOSE = 2e-2


def plain(value: Any) -> Any:
    """A number or an array of numbers; anything else as it is."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (pd.Series, pd.Index, pd.DataFrame)):
        value = value.to_numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, dict):
        value = list(value)
    if isinstance(value, (set, list, tuple, range, np.ndarray)):
        value = list(value)
        with suppress(TypeError, ValueError):  # mixed things stay a list
            return np.asarray(value, float)
    return value


def same(answer: Any, expected: Any, tolerance: float = TOLERANCE, noise: float = NO_NOISE) -> bool:
    """Whether two plain values are equal, numbers up to a relative tolerance, or up to an absolute `noise`."""
    if is_number(expected):
        return is_number(answer) and math.isclose(answer, expected, rel_tol=tolerance, abs_tol=noise)
    if isinstance(expected, np.ndarray):
        if not isinstance(answer, np.ndarray) or answer.shape != expected.shape:
            return False
        return bool(np.allclose(answer, expected, rtol=tolerance, atol=noise, equal_nan=True))
    return type(answer) is type(expected) and answer == expected


def is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, (bool, complex))


def fault(answer: Any, expected: Any) -> str:
    """What is wrong with an answer: its kind or its shape, else what its value alone tells."""
    if callable(answer):
        return "it is a function: call it, and give what it returns"
    if is_number(expected):
        return _not_a_number(answer) or _other_number(answer, expected)
    return _not_the_array(answer, expected) or _other_array(answer, expected)


def _not_a_number(answer: Any) -> str | None:
    if isinstance(answer, np.ndarray):
        more = "take `.item()` of it" if answer.size == 1 else "it still has to be brought down to one"
        return f"one number is asked for, this is {_kind(answer)}: {more}"
    if not is_number(answer):
        return f"one number is asked for, not {_kind(answer)}"
    if math.isnan(answer):
        return "it is NaN: something undefined was taken along (dead features, for one: see np.nanmean, dropna)"
    return None


def _not_the_array(answer: Any, expected: np.ndarray) -> str | None:
    if not isinstance(answer, np.ndarray):
        return f"{_kind(expected)} is asked for, not {_kind(answer)}"
    if answer.shape == expected.shape:
        return "it holds NaN: something undefined was taken along" if np.isnan(answer).any() else None
    if answer.size == expected.size and answer.squeeze().shape == expected.shape:
        return f"shape {expected.shape} is asked for, got {answer.shape}: drop the axis of length 1 with `.squeeze()`"
    if answer.shape == expected.shape[::-1] and answer.ndim > 1:
        return f"shape {expected.shape} is asked for, got {answer.shape}: rows and columns are exchanged"
    return f"shape {expected.shape} is asked for, got {answer.shape}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    names = {bool: "True or False", str: "a text", list: "a list of mixed things"}
    return "a number" if is_number(value) else names.get(type(value), f"a {type(value).__name__}")


def _other_number(answer: float, expected: float) -> str:
    share = 0 < expected < 1
    relations = {
        "it is a hundred times too large: a share is asked for, not per cent": 100 * expected if share else math.nan,
        "the sign is the other way round": -expected,
        "it is what is left to 1: the complement": 1 - expected if share else math.nan,
        "it is upside down: one divided by what is asked for": 1 / expected if expected else math.nan,
        "it is one too many: is something counted from 1, or an end included?": expected + 1,
        "it is one too few: is an end left out?": expected - 1,
    }
    for sentence, value in relations.items():
        if same(answer, value) and not (abs(value - expected) == 1 and not float(expected).is_integer()):
            return sentence
    if math.isclose(answer, expected, rel_tol=CLOSE):
        return "it is close, but further off than rounding explains"
    return f"it is too {'high' if answer > expected else 'low'}, and not by a mistake that is known here"


def _other_array(answer: np.ndarray, expected: np.ndarray) -> str:
    relations = {
        "every entry is one too high: positions and layers are counted from 0": expected + 1,
        "every entry is one too low": expected - 1,
        "the order is reversed": expected[::-1],
        "every sign is the other way round": -expected,
        "every entry is a hundred times too large: shares are asked for, not per cent": 100 * expected,
    }
    for sentence, value in relations.items():
        if same(answer, value):
            return sentence
    if same(np.sort(answer, axis=None), np.sort(expected, axis=None)):
        return "the numbers are right and their order is not"
    wrong = np.flatnonzero(~np.isclose(answer, expected, rtol=TOLERANCE, atol=1e-12))
    return f"{len(wrong)} of {expected.size} entries are wrong, the first at place {wrong[0]} (from 0)"
