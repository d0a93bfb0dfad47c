"""Let a reader choose what a figure shows where a notebook is open in a browser; elsewhere it is a still."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def pick(draw: Callable[..., Figure], alternative: str, **choices: Iterable) -> Figure | None:
    """Show `draw(name=value, …)` with a menu for each of `choices`, or, where nobody can choose, with all first values.

    What is saved in a notebook is a picture in either case, with its `alternative` text: no notebook depends on a
    widget.
    """
    options = {name: list(values) for name, values in choices.items()}

    def drawn(**chosen) -> Figure:
        figure = draw(**chosen)
        plt.close(figure)  # else it is shown twice
        figure._repr_mimebundle_ = lambda **_: ({}, {"image/png": {"alt": alternative}})
        return figure

    if "JPY_SESSION_NAME" not in os.environ:  # a Jupyter server sets it, papermill and nbval do not
        return drawn(**{name: values[0] for name, values in options.items()})
    from ipywidgets import Dropdown, interact  # nothing else needs it

    interact(drawn, **{name: Dropdown(options=values, description=name) for name, values in options.items()})
    return None
