"""What a notebook claims, recorded where it is measured, under the id by which the scorecard asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from lib.workbook.outputs import save_table
from lib.workbook.profiles import Profile

CHECKS = "table_checks"
HOLDS, FAILS, LEFT_OUT = "holds", "does not hold at this scale", "left out"
INCONCLUSIVE = "inconclusive"

Claim = tuple[str, str, bool | None | str, str]
"""Id, words, whether it holds (None: it is left out; `INCONCLUSIVE`: its control fails), and the effect or why none."""


class Missing(LookupError):
    """A value that no run has written yet, in one sentence."""


def claim(id: str, words: str, needs: str, measure: Callable[[], tuple[bool, str]], profile: Profile) -> Claim:
    """A claim for which models are needed (as for `Profile.lacking`).

    `measure()` gives whether it holds, and the effect in words; it is not called where a needed model is none.
    """
    lacking = profile.lacking(needs)
    return (id, words, None, profile.left_out(lacking)) if lacking else (id, words, *measure())


def unless(reason: str, holds: bool, effect: str) -> tuple[bool | str, str]:
    """Whether a claim holds, and its effect; inconclusive where there is a reason why its measure says nothing."""
    return (INCONCLUSIVE, f"{reason}; {effect}") if reason else (holds, effect)


def record(claims: Sequence[Claim], name: str, profile: Profile) -> pd.DataFrame:
    """Write claims with ids and verdicts to the table `name`; returns claim, verdict and effect, for showing."""
    table = pd.DataFrame(claims, columns=["id", "claim", "holds", "effect"])
    recorded = table.assign(verdict=[_verdict(holds) for _, _, holds, _ in claims])[
        ["id", "claim", "verdict", "effect"]
    ]
    save_table(recorded, name, profile)
    return recorded.drop(columns="id")


def _verdict(holds: bool | None | str) -> str:
    if holds is None:
        return LEFT_OUT
    return holds if isinstance(holds, str) else HOLDS if holds else FAILS


def check(id: str, words: str, holds: bool, profile: Profile) -> None:
    """Print whether what a notebook checks of its own method holds, and record it under its id in `CHECKS`."""
    print(f"{words}: {bool(holds)}")
    path = profile.figures_dir / f"{CHECKS}.csv"
    others = pd.read_csv(path).query("id != @id") if path.exists() else None
    row = pd.DataFrame([{"id": id, "check": words, "verdict": HOLDS if holds else FAILS}])
    save_table(pd.concat([others, row]).sort_values("id"), CHECKS, profile)


def recorded(id: str, name: str, profile: Profile) -> pd.DataFrame:
    """The row of one claim or check in the table `name`. Raises `Missing` where it has not been recorded."""
    path = profile.figures_dir / f"{name}.csv"
    if not path.exists():
        raise Missing(f"{path.name} has not been written.")
    table = pd.read_csv(path)
    found = table[table["id"] == id]
    if found.empty:
        raise Missing(f"{name} does not record {id}.")
    return found
