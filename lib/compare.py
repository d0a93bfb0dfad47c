"""``python -m lib.compare MODEL_A MODEL_B``: how alike two models of one's own are, and whose feature is whose match.

A model is a name of the mini zoo, a folder, or an id of the hub. Without SAEs of one's own, SAEs are trained as the
workbook's are. Everything goes into one folder: a page to read, an explorer, tables, and what the run was made of.
Nothing of the text leaves this computer.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from lib import packages

packages.require()  # before an import that ends in a traceback
import pandas as pd
import typer
from markupsafe import Markup

from lib import plots
from lib.interpret.snippets import pairs_with_snippets, vocabulary
from lib.models import devices
from lib.models.hub import ModelNotFound
from lib.models.machine import GB, measured_rate, writable
from lib.mppc.directions import Direction, layer_shares, mean_interval, summarise
from lib.plots import explorer
from lib.workbook.notebooks import advice
from lib.workbook.outputs import write_figure
from lib.workbook.pages import templates
from lib.workbook.profiles import HOME
from lib.workbook.store import Store, atomic_write
from lib.workbook.two_models import Comparison, Request, folder_of

PROCESS = 1e9  # bytes that Python and its packages take
HEADINGS = {
    "comparison": "from → to", "n_features": "features", "n_dead": "of these dead", "mean": "mean MPPC",
    "low": "95 % from", "high": "to", "median": "median", "share_above_0.95": "share above 0.95",
    "null_99": "chance, 99th percentile",
}  # fmt: skip
PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "numba")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    a: Annotated[str, typer.Argument(help="A mini model's name, a folder, or an id of the hub.")],
    b: Annotated[str, typer.Argument(help="The other model.")],
    saes_a: Annotated[
        list[str],
        typer.Option(
            help="SAE of the first model: a SAELens folder, a folder of several, or org/repo:path; repeatable."
        ),
    ] = [],
    saes_b: Annotated[list[str], typer.Option(help="The same of the other model.")] = [],
    skyline: Annotated[
        list[str], typer.Option(help="SAEs of the first model from another seed, beside --saes-a; repeatable.")
    ] = [],
    text: Annotated[
        str | None, typer.Option(help="A file (.txt, .jsonl) or a dataset of the hub; else documentation.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers of the first model, as 5+15+25; the other is read at the same relative depths."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1_000, help="Positions over which features are correlated.")] = 200_000,
    sae_tokens: Annotated[int, typer.Option(min=1_024, help="Tokens on which SAEs are trained.")] = 1_000_000,
    context: Annotated[int, typer.Option(min=16, help="Tokens that a model reads at once, if it can.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results.", show_default="figures/compare/A--B")
    ] = None,
) -> None:
    """Compare two models' features."""
    try:
        if layers is not None and not all(layer.isdecimal() for layer in layers.split("+")):
            raise ValueError(f"layers are written 5+15+25, not {layers!r}.")
        chosen = None if layers is None else tuple(sorted({int(layer) for layer in layers.split("+")}))
        saes = tuple(saes_a), tuple(saes_b), tuple(skyline)
        request = Request(a, b, *saes, text, chosen, tokens, sae_tokens, context, device)
        folder = out or HOME / "figures" / "compare" / f"{Path(a).name}--{Path(b).name}"
        if any(path.is_file() for path in (folder, *folder.parents)) or not writable(folder):
            raise ValueError(f"{folder} is no folder that can be written to; take another with --out.")
        typer.echo(f"Report: {run(request, folder).resolve().as_uri()}")
    except (ModelNotFound, ValueError, FileNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2)
    except OSError as error:
        typer.echo(f"Stopped: {error}.{advice(str(error))}", err=True)
        raise typer.Exit(1)
    except KeyboardInterrupt:
        typer.echo("Stopped. What was finished is kept; the same command goes on where you were.", err=True)
        raise typer.Exit(130)


def run(request: Request, folder: Path) -> Path:
    """Do what is asked, or what is left of it; returns the page.

    Raises as `Comparison` does, and `ValueError` for a device that is not there or a model that is named twice.
    """
    began = time.monotonic()
    devices.resolve(request.device)  # what is wrong is said before a text is read
    if folder_of(request.a).samefile(folder_of(request.b)) and not (request.saes_a or request.saes_b):
        raise ValueError(f"{request.a} is compared with itself: its SAEs would be the same. Name another model.")
    comparison = Comparison(request, Store(folder / "cache"))
    for line in announced(comparison):
        typer.echo(line)
    seconds, memory, disk = comparison.needs(measured_rate(devices.resolve(request.device)))
    clock = timedelta(seconds=round(seconds))
    room = f"{(PROCESS + memory) / GB:.1f} GB of memory and {max(disk / GB, 0.1):.1f} GB of disk"
    typer.echo(f"About {clock}, {room}; the time is coarse.")
    both = comparison.directions()
    skyline = comparison.directions(skyline=True) if request.has_skyline else None
    page = write(comparison, both, skyline, folder)
    typer.echo(f"Done in {timedelta(seconds=round(time.monotonic() - began))}.")
    return page


def announced(comparison: Comparison) -> list[str]:
    """What the run will do, before the long part of it."""
    lines = []
    for side in (comparison.a, comparison.b):
        trained = f"SAEs are trained on {comparison.request.sae_tokens:,} tokens"
        given = f"given SAEs, {len(side.layers)} of them"
        lines.append(f"{side.name}: layers {', '.join(map(str, side.layers))}; {given if side.given else trained}.")
    n, (a, b) = comparison.blocks.a.n_positions, comparison.blocks.shares
    return [*lines, f"{n:,} positions, {a:.0%} and {b:.0%} of the models' tokens."]


def write(
    comparison: Comparison, both: tuple[Direction, Direction], skyline: tuple[Direction, Direction] | None, folder: Path
) -> Path:
    """Write tables, pictures, the explorer, `run.json` and the page; returns the page."""
    plots.use_theme()
    a, b = comparison.a, comparison.b
    directions = {f"{d.source} → {d.target}": d for d in both} | (
        {f"SAE seed, {a.label}": skyline[0]} if skyline else {}
    )
    summary = pd.DataFrame([{"comparison": label} | summarise(d) for label, d in directions.items()])
    places = comparison.places(a), comparison.places(b)
    tokenizers = a.model.tokenizer, b.model.tokenizer
    pairs = pairs_with_snippets(both[0].frame, places, tokenizers)
    folder.mkdir(parents=True, exist_ok=True)
    for direction, name in zip(both, ("a_to_b", "b_to_a"), strict=True):
        direction.frame.to_parquet(folder / f"{name}.parquet", index=False)
    summary.to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    pairs.to_csv(folder / "pairs.csv", index=False, float_format="%.6g")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    atomic_write(folder / "run.json", json.dumps(comparison.about() | {"versions": versions}, indent=1, default=str))
    figures = _figures(directions, both)
    for name, (figure, _) in figures.items():
        write_figure(figure, folder / name)
    pictures = [{"file": f"{name}.png", "caption": caption} for name, (_, caption) in figures.items()]
    shown, title = _shown(comparison, both, places), f"{a.label} and {b.label}"
    atomic_write(folder / "explorer.html", explorer.page_of(shown, title))
    return _page(comparison, summary, pairs, pictures, bool(skyline), folder)


def _figures(directions: dict[str, Direction], both: tuple[Direction, Direction]) -> dict[str, tuple]:
    values = {label: d.frame["mppc"] for label, d in directions.items()}
    intervals = {label: mean_interval(d) for label, d in directions.items()}
    first, shares = both[0], layer_shares(both[0])
    nulls = {f"null: {label}": d.frame["null_mppc"] for label, d in directions.items() if d is first}
    return {
        "densities": (plots.fig_mppc_density(values, intervals), "Densities of MPPC, with means and their intervals."),
        "null": (plots.fig_share_above(values | nulls), "Share of features above each MPPC, beside what chance gives."),
        "layers": (plots.fig_layer_map(shares, first.source, first.target), "In which layer the best matches lie."),
    }


def _shown(comparison: Comparison, both: tuple[Direction, Direction], places: Sequence) -> list[explorer.Shown]:
    shown = []
    for k, (side, name, other) in enumerate(((comparison.a, "a", "b"), (comparison.b, "b", "a"))):
        alive = both[k].frame[both[k].frame["mppc"].notna()].reset_index(drop=True)
        words, features = vocabulary(side.model.tokenizer), alive[["layer", "index"]].to_numpy()
        scores = explorer.scores_of(places[k], features, words)
        shown.append(explorer.Shown(name, side.label, places[k], features, {other: alive}, scores, words))
    return shown


def _page(
    comparison: Comparison, summary: pd.DataFrame, pairs: pd.DataFrame, pictures: list[dict[str, str]], skyline: bool,
    folder: Path,
) -> Path:  # fmt: skip
    shown = summary[list(HEADINGS)].rename(columns=HEADINGS)
    table = shown.to_html(index=False, border=0, float_format=lambda x: f"{x:.3f}", justify="left")
    shares = comparison.blocks.shares
    paired = f"at {shares[0]:.0%} of the first one's tokens and {shares[1]:.0%} of the other's"
    different = f"The models have different tokenizers: they are compared where both have read the same, {paired}."
    same = "Both read the same tokens." if shares == (1.0, 1.0) else different
    kinds = {"best": "The best matches", "worst": "The worst"}
    text = comparison.request.text or "documentation of Python packages"
    page = templates().get_template("compare.html").render(
        profile={"meaningful": True}, a=comparison.a.label, b=comparison.b.label, text=text, shares=same,
        positions=f"{comparison.blocks.a.n_positions:,}", summary=Markup(table), pictures=pictures, skyline=skyline,
        documents=comparison.blocks.a.n_documents,
        sides=[comparison.sentence(side) for side in (comparison.a, comparison.b)],
        pairs=[(kinds[kind], rows.to_dict("records")) for kind, rows in pairs.groupby("kind", sort=False)],
    )  # fmt: skip
    target = folder / "index.html"
    atomic_write(target, page)
    return target


if __name__ == "__main__":
    app()
