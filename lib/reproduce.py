"""``python -m lib.reproduce``: run the notebooks in order and keep their executed copies with the figures."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from lib import packages

packages.require()  # before an import that ends in a traceback
import typer
from rich.console import Console

from lib.models.hub import ModelNotFound, TextNotFound
from lib.models.machine import measured_rate
from lib.workbook import checks, kernels, model_store, plan as planning
from lib.workbook.checks import CannotRun
from lib.workbook.notebooks import (
    FOLDER,
    NotebookFailed,
    advice,
    find_notebooks,
    left_out_places,
    refresh_notebook,
    run_notebook,
    title_of,
)
from lib.workbook.profiles import PROFILES, Profile, ProfileError, get_profile
from lib.workbook.store import Store

DEFAULT = "mini"


class NoReport(Exception):
    """Why a finished run has no report, in one sentence."""


JUDGING = "06"  # the notebook in which features are judged
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    profile: Annotated[str, typer.Option(help=f"Size of the run: {', '.join(PROFILES)}.")] = DEFAULT,
    only: Annotated[list[str], typer.Option(help="Run this notebook, by number or name; repeatable.")] = [],
    start: Annotated[str | None, typer.Option("--from", help="Run from this notebook on.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="A profile's field=value; repeatable.")] = [],
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Do the work on a Ray cluster: auto or HOST:PORT.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the notebooks and stop.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what the run would take, and stop.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what this computer has and lacks for the profile, and stop.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="First delete what is in the profile's cache folder.")] = False,
    commit_outputs: Annotated[
        bool, typer.Option("--commit-outputs", help=f"Take the outputs into notebooks/ (profile {DEFAULT}, no --set).")
    ] = False,
    folder: Annotated[Path, typer.Option("--notebooks", help="Folder of the notebooks.", show_default=False)] = FOLDER,
) -> None:
    """Run the notebooks in order; executed copies go to figures/PROFILE/notebooks, figures to figures/PROFILE."""
    try:
        notebooks = find_notebooks(folder, only, start)
        if show:
            return _list(notebooks)
        settings = [*settings, *([f"ray={ray}"] if ray else [])]
        size = get_profile(profile, ",".join(settings))
        if commit_outputs and (profile != DEFAULT or settings):
            raise CannotRun(f"--commit-outputs needs the profile {DEFAULT} as it is, without --set.")
        if check:
            return _check(size)
        checks.check_packages()
        if plan:
            return planning.show(size, measured_rate(model_store.device_of(size)), Console(width=120))
        if model_store.device_of(size) == "cpu":
            kernels.prepare()
        if any(path.stem.startswith(JUDGING) for path in notebooks):
            checks.check_judge(size)
        for requirement in (checks.check_room, checks.check_hub, checks.check_tokenizers):
            requirement(size)
        if size.ray:
            from lib.workbook import cluster  # only where it is used: Ray is an optional install

            cluster.check(size)
        if fresh:
            typer.echo(f"Deleted {Store(size.cache_dir).clear()} artifacts in {size.cache_dir}.")
        say_what_is_left_out(notebooks, size)
        run_all(notebooks, size, overrides_for(size, settings))
        if commit_outputs:
            for path in notebooks:
                refresh_notebook(size.figures_dir / "notebooks" / path.name, path)
        write_report(size, folder)
    except (CannotRun, ProfileError, ModelNotFound, TextNotFound) as error:
        raise _stop(str(error), 2)
    except (NotebookFailed, NoReport) as error:
        raise _stop(str(error), 1)
    except OSError as error:  # of the run itself, not of a notebook: its folders and its notes
        raise _stop(f"Stopped: {error}.{advice(str(error))}", 1)
    except KeyboardInterrupt:
        raise _stop("Stopped. What was finished is kept; --from goes on where you were.", 130)
    finally:
        kernels.discard()


def run_all(notebooks: Sequence[Path], profile: Profile, overrides: dict[str, str]) -> None:
    """Execute notebooks one after the other, up to the first that fails; raises `NotebookFailed`.

    A terminal shows papermill's bar for the notebook that runs; a log gets a line when one begins and when it is done.
    While the next one runs, this process makes the report's page of the last one.
    """
    parameters = {"profile": profile.name, "overrides": overrides}
    with ThreadPoolExecutor(1) as pool:
        for number, path in enumerate(notebooks, start=1):
            title, began = f"[{number}/{len(notebooks)}] {path.stem}", time.monotonic()
            if not sys.stderr.isatty():
                typer.echo(f"{title} begins")
            executed = profile.figures_dir / "notebooks" / path.name
            run_notebook(path, executed, parameters, title)
            pool.submit(_convert, executed)
            typer.echo(f"{title} done in {timedelta(seconds=round(time.monotonic() - began))}")


def _convert(executed: Path) -> None:
    from lib.workbook import rendering  # its packages take a second to import; --list and errors need none of them

    rendering.converted(executed, executed.stat().st_mtime_ns)


def write_report(profile: Profile, folder: Path) -> None:
    """Build the report of what the profile's folder holds and print its address; raises `NoReport`."""
    try:
        from lib.workbook import report  # as above

        page = report.build(profile, folder)
    except Exception as error:  # whatever it is, the run is finished and its results are there
        raise NoReport(
            f"The notebooks ran and their results are in {profile.figures_dir}, "
            f"but the report could not be written: {type(error).__name__}: {error}"
        ) from error
    typer.echo(f"Report: {page.resolve().as_uri()}")


def say_what_is_left_out(notebooks: Sequence[Path], profile: Profile) -> None:
    """Print which sections of the notebooks are left out, wholly or partly, for want of a model; else nothing."""
    if profile.without:
        chosen = {path.stem for path in notebooks}
        places = left_out_places(profile, notebooks[0].parent)
        sections = [f"\n    {place.notebook}: {place.heading}" for place in places if place.notebook in chosen]
        sentence = profile.left_out()
        typer.echo(f"{sentence[0].upper()}{sentence[1:]}{':' * bool(sections)}{''.join(sections) or '.'}")


def overrides_for(profile: Profile, settings: Sequence[str]) -> dict[str, str]:
    """The settings as the notebooks get them, which run in another working directory."""
    pairs = (pair.partition("=") for pair in ",".join(settings).split(",") if pair)
    overrides = {field.strip(): value.strip() for field, _, value in pairs}
    folders = {
        field: str(getattr(profile, field).resolve()) for field in ("cache_dir", "figures") if field in overrides
    }
    return overrides | folders


def _check(profile: Profile) -> None:
    lines = checks.check(profile)
    typer.echo("\n".join(lines))
    if any(line.startswith("[missing]") for line in lines):
        raise typer.Exit(1)


def _list(notebooks: Sequence[Path]) -> None:
    for path in notebooks:
        typer.echo(f"{path.stem:32} {title_of(path)}")


def _stop(message: str, code: int) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)


if __name__ == "__main__":
    logging.getLogger("papermill").setLevel(logging.ERROR)
    app()
