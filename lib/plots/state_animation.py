"""A page of its own that shows, token by token, what a layer takes in of A and of B; without scripts."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from lib.plots.circuits import COLOURS, TOKEN_COLOURS, held_shares

SECONDS = 1.5  # that a frame is shown
LEFT, BAR, ROW, TOKEN = 150, 380, 30, 62  # pixels

STYLE = """body {font-family: sans-serif; max-width: 52rem; margin: 2rem auto; color: #222}
svg {width: 100%%; height: auto}
.frame {visibility: hidden; animation: show %(all).1fs step-end infinite}
.frame:last-of-type {visibility: visible}
svg:hover .frame {animation-play-state: paused}
@keyframes show {0%% {visibility: visible} %(part).3f%% {visibility: hidden} 100%% {visibility: hidden}}
@media (prefers-reduced-motion: reduce) {.frame {animation: none}}
@media print {.frame {animation: none}}
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
<p>The prompt is read from left to right. After each token, the bars show how much of A and of B the key layer holds:
the change of the logit of B if the layer's state at that moment came from a run with another A (or another B), as a
share of the change in the end. Point at the drawing to stop it.</p>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{frames}</svg>
</body></html>
"""


def taken_in_page(frames: Mapping[str, pd.DataFrame], last: int = 8) -> str:
    """HTML of the animation; `frames` and `last` as for `lib.plots.circuits.fig_taken_in`."""
    words = ["A", "B", *(f"B1+{k}" for k in range(1, last - 1))]
    shares = {
        (name, token): held_shares(frame, f"{token}′")[1 : last + 1]
        for name, frame in frames.items()
        for token in "AB"
    }
    drawn = [_frame(k, words, shares) for k in range(last)]
    timing = {"all": SECONDS * last, "part": 100 / last}
    size = {"width": LEFT + max(BAR + 90, TOKEN * last), "height": 80 + ROW * (len(shares) + len(frames))}
    return PAGE.format(title="A and B enter the state", style=STYLE % timing, frames="".join(drawn), **size)


def _frame(k: int, words: list[str], shares: Mapping[tuple[str, str], np.ndarray]) -> str:
    """What is seen after token k."""
    parts = [_token(x, word, x == k, x < k) for x, word in enumerate(words)]
    y = 80
    for (name, token), values in shares.items():
        if token == "A":
            parts.append(_text(4, y + 34, name, to_hex(COLOURS[name]), "start"))
        share = float(np.clip(values[k], 0, 1))
        parts.append(_text(LEFT - 12, y + 18, token, to_hex(TOKEN_COLOURS[token]), "end"))
        parts.append(_bar(y, BAR, "#f2f2f2") + _bar(y, share * BAR, to_hex(TOKEN_COLOURS[token])))
        parts.append(_text(LEFT + BAR + 10, y + 18, f"{share:.0%}", "#222", "start"))
        y += ROW if token == "A" else 2 * ROW
    return f'<g class="frame" style="animation-delay: {(k - len(words)) * SECONDS}s">{"".join(parts)}</g>'


def _bar(y: float, width: float, colour: str) -> str:
    return f'<rect x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="18" fill="{colour}"/>'


def _token(x: int, word: str, now: bool, read: bool) -> str:
    fill = "#ffdd99" if now else "#eeeeee" if read else "#ffffff"
    box = f'<rect x="{LEFT + x * TOKEN}" y="20" width="{TOKEN - 8}" height="30" rx="6" fill="{fill}" stroke="#555"/>'
    return box + _text(LEFT + x * TOKEN + TOKEN / 2 - 4, 40, word, "#222", "middle")


def _text(x: float, y: float, words: str, colour: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="14" fill="{colour}" text-anchor="{anchor}">{html.escape(words)}</text>'
