"""Pages that a reader plays with, each in one file: data as JSON that no text in it can break out of."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"


def page_of(template: str, profile: str, data: Any) -> str:
    """A template of `lib/plots/templates` with the profile's name and the data, which must have a JSON form.

    No `<` reaches the data's script element, so that no text can close it.
    """
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    page = (TEMPLATES / template).read_text(encoding="utf-8")
    return page.replace("{{PROFILE}}", html.escape(profile)).replace("{{DATA}}", text)


def packed(values: Any, dtype: type | None = None) -> str:
    """An array's little-endian bytes in base64."""
    array = np.ascontiguousarray(np.asarray(values, dtype))
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def linked_page(pairs: pd.DataFrame, left: str, right: str, profile: str) -> str:
    """A page of its own: two maps, and hovering over a feature shows its match on the other."""
    columns = ["ax", "ay", "bx", "by", "rho", "a", "b"]
    words = {column: list(pairs[column]) for column in ("token", "concept")}
    values = packed(pairs[columns], np.float32)
    data = {"left": left, "right": right, "columns": columns, "n": len(pairs), "values": values, **words}
    return page_of("spaces.html", profile, data)
