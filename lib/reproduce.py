"""``python -m lib.reproduce``: run the notebooks in order and keep their executed copies with the figures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lib.workbook.needs import GB, INSTALL, REQUIREMENTS, package_faults, writable
from lib.workbook.notebooks import (
    FOLDER,
    CannotRun,
    NotebookFailed,
    advice,
    code_cells,
    find_notebooks,
    left_out_places,
    refresh_notebook,
    run_notebook,
    title_of,
)
from lib.workbook.profiles import DATA, PROFILES, Profile, ProfileError, get_profile
from lib.workbook.progress import Progress
from lib.workbook.store import Store, atomic_write

DEFAULT = "mini"
FIRST_RUN = DATA / "reference" / "first_run_seconds.json"


class NoReport(Exception):
    """Why a finished run has no report, in one sentence."""


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
    plan: Annotated[bool, typer.Option("--plan", help="Say what the run would take, stage by stage, and stop.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Say what this computer has and lacks for the profile, and stop.")] = False,
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
        check_packages(REQUIREMENTS)
        if plan:
            return show_plan(size)
        check_room(size)
        check_hub(size)
        check_tokenizers(size)
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
    except (CannotRun, ProfileError) as error:
        raise _stop(str(error), 2)
    except (NotebookFailed, NoReport) as error:
        raise _stop(str(error), 1)
    except OSError as error:  # of the run itself, not of a notebook: its folders and its notes
        raise _stop(f"Stopped: {error}.{advice(str(error))}", 1)
    except KeyboardInterrupt:
        raise _stop("Stopped. What was finished is kept; --from goes on where you were.", 130)


def run_all(notebooks: Sequence[Path], profile: Profile, overrides: dict[str, str]) -> None:
    """Execute notebooks one after the other, up to the first that fails; raises `NotebookFailed`.

    How long each took is kept in ``timings.json`` in the cache folder, to estimate the time left of the next run; the
    first run is estimated by what a run from nothing took on two cores.
    """
    record = profile.cache_dir / "timings.json"
    timings = _read_timings(record)
    mine = timings.setdefault(profile.name, {})
    known = _read_timings(FIRST_RUN).get(profile.name, {}) | mine
    with Progress([path.stem for path in notebooks], known) as progress:
        for path in notebooks:
            started = time.monotonic()
            progress.start(path.stem, len(code_cells(path)))
            target = profile.figures_dir / "notebooks" / path.name
            run_notebook(path, target, {"profile": profile.name, "overrides": overrides}, progress.cell)
            mine[path.stem] = round(time.monotonic() - started, 1)
            atomic_write(record, json.dumps(timings, indent=1))
            progress.finish()


def write_report(profile: Profile, folder: Path) -> None:
    """Build the report of what the profile's folder holds and print its address; raises `NoReport`."""
    try:
        from lib.workbook import (
            report,  # here: its packages take a second to import, and --list and errors need none of them
        )

        page = report.build(profile, folder)
    except Exception as error:  # whatever it is, the run is finished and its results are there
        raise NoReport(
            f"The notebooks ran and their results are in {profile.figures_dir}, "
            f"but the report could not be written: {type(error).__name__}: {error}"
        ) from error
    typer.echo(f"Report: {page.resolve().as_uri()}")


def say_what_is_left_out(notebooks: Sequence[Path], profile: Profile) -> None:
    """Print which sections of the notebooks are left out, in whole or in part, for want of a model; nothing with all models."""
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
    if "cache_dir" in overrides:
        overrides["cache_dir"] = str(profile.cache_dir.resolve())
    return overrides


def check_packages(requirements: Path) -> None:
    """Raise `CannotRun` if a pinned package is not installed; say so where another version is."""
    missing, other = package_faults(requirements)
    if missing:
        raise CannotRun(f"not installed: {', '.join(missing)}; {INSTALL}.")
    if other:
        typer.echo(f"Numbers may differ from the pinned ones: {', '.join(other)}.", err=True)


def check_room(profile: Profile) -> None:
    """Raise `CannotRun` where disk or memory will surely not do (not half of what the plan says) or nothing can be written."""
    from lib.models.hub import ModelNotFound
    from lib.workbook import plan  # takes seconds: it knows the models

    for folder in (profile.cache_dir, profile.figures_dir):
        if not writable(folder):
            raise CannotRun(
                f"{folder} cannot be written to; allow it, or choose another cache folder with --set cache_dir=FOLDER."
            )
    try:
        takes, has = plan.needed(plan.stages(profile)), plan.available(profile)
    except ModelNotFound as error:
        raise CannotRun(str(error)) from None
    if has.disk < takes.disk / 2:
        raise CannotRun(
            f"{profile.cache_dir} has {has.disk / GB:.1f} GB free and profile {profile.name!r} needs at least "
            f"{takes.disk / 2 / GB:.1f}; make room or choose another folder with --set cache_dir=FOLDER."
        )
    if has.memory < takes.memory / 2:
        raise CannotRun(
            f"{has.memory / GB:.1f} GB of memory are free and profile {profile.name!r} needs at least "
            f"{takes.memory / 2 / GB:.1f}; close other programs or take a smaller profile; --plan says what for."
        )


def show_plan(profile: Profile) -> None:
    """Print what a run takes, from short measurements of this machine; runs nothing else."""
    from lib.models.hub import ModelNotFound
    from lib.workbook import plan
    from lib.workbook.calibration import measure

    typer.echo("Measuring this machine …", err=True)
    try:
        plan.show(profile, measure(profile))
    except ModelNotFound as error:
        raise CannotRun(str(error)) from None


def check_hub(profile: Profile) -> None:
    """Fetch and record what comes from the hub; raise `CannotRun`, naming all that is missing, where that cannot be."""
    from lib.models import hub
    from lib.workbook import model_store, origins, texts

    names = [name for name in model_store.hub_names(profile) if not origins.is_here(name, profile)]
    text = profile.corpus == "openwebtext" and not origins.cached_text(profile)
    if (names or text) and (why := hub.unreachable()):
        lacking = [*names, *([hub.OPENWEBTEXT] if text else [])]
        commands = "".join(f"\n    {hub.command(name)}" for name in lacking)
        raise CannotRun(f"not in {hub.CACHE}: {', '.join(lacking)}; and {why}. With a network, run{commands}")
    if text:
        typer.echo(f"{hub.OPENWEBTEXT} is streamed as it is read, {texts.gigabytes_streamed(profile):.1f} GB at most.")
    try:
        for name in model_store.hub_names(profile):
            origins.model_folder(name, profile)
        if profile.corpus == "openwebtext":
            origins.text_revision(profile)
    except (hub.ModelNotFound, hub.TextNotFound) as error:
        raise CannotRun(str(error)) from None


def check_tokenizers(profile: Profile) -> None:
    """Raise `ProfileError`, in one sentence, where a model was trained with another tokenizer than the text's."""
    from lib.models import hub
    from lib.workbook import model_store

    try:
        for name in dict.fromkeys(profile.model_names):
            model_store.require_tokenizer(name, profile)
    except hub.ModelNotFound as error:
        raise CannotRun(str(error)) from None


def _check(profile: Profile) -> None:
    missing, _ = package_faults()
    if missing:  # then the rest cannot be looked at
        typer.echo(f"[missing] {', '.join(missing)}: {INSTALL}")
        raise typer.Exit(1)
    from lib.workbook import environment  # heavy

    lines = environment.check(profile)
    typer.echo("\n".join(lines))
    if any(line.startswith("[missing]") for line in lines):
        raise typer.Exit(1)


def _read_timings(path: Path) -> dict[str, dict[str, float]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # only the estimate is lost


def _list(notebooks: Sequence[Path]) -> None:
    for path in notebooks:
        typer.echo(f"{path.stem:32} {title_of(path)}")


def _stop(message: str, code: int) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)


if __name__ == "__main__":
    logging.getLogger("papermill").setLevel(logging.ERROR)
    app()
