"""Notebook cells that need a model which the run is made without: they say so, and the rest of the notebook goes on.

A cell that needs a model says so in a comment of its own, such as ``# needs: mamba, pythia_seed`` or
``# needs: mamba or rwkv``. Where the profile has none, the cell prints one sentence instead of running, and so does
every later cell that reads a name which would have been made there. With all models, the comments do nothing.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from types import CodeType

from IPython import get_ipython

from lib.workbook.profiles import Profile

MARK = re.compile(r"^# needs: (.+)$", re.MULTILINE)


class LeavingOut:
    """Decides for one cell of a notebook after the other; as an input transformer of IPython it also rewrites them."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.unmade: dict[str, tuple[str, ...]] = {}
        """Names that cells left out would have made → for want of which models."""

    def roles(self, source: str) -> tuple[str, ...]:
        """The models for want of which a cell is left out; none for one that runs."""
        reads, makes = _names(source)
        wanting = {role for needs in MARK.findall(source) for role in self.profile.lacking(needs)}
        wanting.update(*(self.unmade.get(name, ()) for name in reads))
        for name in makes - reads:  # what a cell changes only is there all the same
            self.unmade.pop(name, None)
            if wanting:
                self.unmade[name] = tuple(wanting)
        return tuple(role for role in self.profile.without if role in wanting)

    def __call__(self, lines: list[str]) -> list[str]:
        if roles := self.roles("".join(lines)):
            sentence = self.profile.left_out(roles)
            return [f"print({sentence[0].upper() + sentence[1:] + '.'!r})\n"]
        return lines


def watch(profile: Profile) -> None:
    """From the next cell of this notebook on, leave out what needs a model that the profile is without."""
    if shell := get_ipython():
        others = [found for found in shell.input_transformers_post if not isinstance(found, LeavingOut)]
        shell.input_transformers_post = others + [LeavingOut(profile)] * bool(profile.without)


def _names(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell reads from cells before it, and names that it makes; of a cell that is no plain Python, none.

    What a function or a lambda reads is not counted: it is read when it is called.
    """
    try:
        code = compile(source, "cell", "exec")
    except SyntaxError:
        return set(), set()
    reads, makes = set(), set()
    for name, stored in _uses(code):
        if stored:
            makes.add(name)
        elif name not in makes:
            reads.add(name)
    return reads, makes


def _uses(code: CodeType) -> Iterator[tuple[str, bool]]:
    """Global names in the order of their use, and whether they are stored; comprehensions run where they stand."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL", "STORE_NAME", "STORE_GLOBAL"):
            yield step.argval, step.opname.startswith("STORE")
        elif isinstance(step.argval, CodeType) and step.argval.co_name.endswith(("comp>", "genexpr>")):
            yield from _uses(step.argval)
