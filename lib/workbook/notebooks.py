"""Find, execute and refresh the workbook's notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from lib.workbook.checks import CannotRun
from lib.workbook.kernels import ThisPython
from lib.workbook.left_out import LeavingOut
from lib.workbook.outputs import Place
from lib.workbook.profiles import HOME, Profile
from lib.workbook.store import atomic_write

FOLDER = HOME / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"  # no page without a kernel can show one

MORE_MEMORY = "close other programs, or take a smaller profile or --set buffer_tokens=…, batch_blocks=…."
MORE_ROOM = "The disk is full: make room, or take another folder with --set cache_dir=FOLDER, and run again."
MAY_NOT_WRITE = "A folder cannot be written to: allow it, or take another with --set cache_dir=FOLDER."
ADVICE = {  # what an error of the system says → what to do
    "No space left on device": MORE_ROOM,
    "requested and": MORE_ROOM,  # NumPy's words: "4096 requested and 0 written"
    "Disk quota exceeded": MORE_ROOM,
    "Read-only file system": MAY_NOT_WRITE,
    "Permission denied": MAY_NOT_WRITE,
    "allocate memory": f"There is too little memory: {MORE_MEMORY}",
    "Unable to allocate": f"There is too little memory: {MORE_MEMORY}",
    "MemoryError": f"There is too little memory: {MORE_MEMORY}",
    "can't start new thread": f"There is too little memory: {MORE_MEMORY}",
    "out of memory": f"There is too little memory on the GPU: {MORE_MEMORY}",
}


class NotebookFailed(Exception):
    """Which cell of which notebook failed, with its last lines."""


def find_notebooks(folder: Path, only: Sequence[str] = (), start: str | None = None) -> list[Path]:
    """The numbered notebooks of a folder in order: all, those named in `only`, or those from `start` on.

    A notebook is named by its number or its name. Raises `CannotRun` for a name that no notebook has, and where none
    is left.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    names = ", ".join(path.stem for path in found)
    if not found:
        raise CannotRun(f"there are no notebooks in {folder}.")
    for name in [*only, *([start] if start else [])]:
        if not any(_goes_by(path, name) for path in found):
            raise CannotRun(f"there is no notebook {name!r}; the notebooks are {names}.")
    first = next((i for i, path in enumerate(found) if start and _goes_by(path, start)), 0)
    chosen = [path for path in found[first:] if not only or any(_goes_by(path, name) for name in only)]
    if not chosen:
        raise CannotRun("--only and --from leave no notebook.")
    return chosen


def title_of(notebook: Path) -> str:
    """The first heading of a notebook."""
    text = "\n".join(c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown")
    heading = re.search(r"^#\s+(.+)$", text, flags=re.MULTILINE)
    return heading[1].strip() if heading else "(no title)"


def code_cells(notebook: Path) -> list[NotebookNode]:
    """The notebook's own code cells, without the one in which papermill puts the parameters."""
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if _is_code(cell)]


def executed_copy(name: str, profile: Profile, folder: Path = FOLDER) -> Path | None:
    """The profile's executed copy of a notebook; else the committed one, if it was run in this profile; else None."""
    copy = profile.figures_dir / "notebooks" / f"{name}.ipynb"
    if copy.exists():
        return copy
    committed = folder / f"{name}.ipynb"
    whole = profile.models == "pretrained" and not profile.without  # as the committed ones were run
    return committed if whole and committed.exists() and profile_of(committed) == profile.name else None


def profile_of(notebook: Path) -> str | None:
    """The profile with which a notebook's outputs were made; None if it has not been executed."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    named = [re.search(r'^profile = "(\w+)"', cell.source, flags=re.MULTILINE) for cell in cells]
    found = [match[1] for match in named if match]
    return found[-1] if found and all(cell.execution_count for cell in cells) else None


def left_out_places(profile: Profile, folder: Path = FOLDER) -> list[Place]:
    """Sections of the notebooks of which a cell is left out, in their order."""
    found = []
    for cells in cells_with_places(folder).values():
        leaving = LeavingOut(profile)
        found += [place for source, place in cells if leaving.roles(source)]
    return list(dict.fromkeys(found))


def cells_with_places(folder: Path = FOLDER) -> dict[str, list[tuple[str, Place]]]:
    """By notebook, the source of every code cell and its place."""
    return {path.stem: list(_walk(path)) for path in find_notebooks(folder)}


def _walk(path: Path) -> Iterator[tuple[str, Place]]:
    heading = ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"^#{1,3}\s+(.+?)\s*$", cell.source, flags=re.MULTILINE))[-1]
        else:
            yield cell.source, Place(path.stem, heading)


class _SavesSeldom(NBClientEngine):
    """papermill's engine, which would write the whole notebook before and after every cell; here twice a minute."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **kwargs: Any) -> None:
        save = nb_man.save

        def save_seldom(**given: Any) -> None:
            if (nb_man.now() - nb_man.last_save_time).total_seconds() > nb_man.autosave_cell_every:
                save(**given)

        nb_man.save = save_seldom
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        finally:
            nb_man.save = save  # once more at the end, however it ended


papermill_engines.register(_SavesSeldom.__name__, _SavesSeldom)


def run_notebook(notebook: Path, target: Path, parameters: dict[str, Any], title: str = "") -> None:
    """Execute a notebook, in its own folder, into the file `target`; on a terminal, papermill's bar shows `title`.

    Raises `NotebookFailed`; `target` then holds the notebook up to the failure.
    """
    source, out = notebook.resolve(), target.resolve()
    bar = {"desc": title, "disable": None, "leave": False}  # None: on a terminal only
    how = dict(cwd=source.parent, kernel_name="python3", language="python", kernel_manager_class=ThisPython)
    how["shutdown_kernel"] = "immediate"  # to take all packages down again would last two seconds
    how["engine_name"] = _SavesSeldom.__name__
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(source, out, parameters, progress_bar=bar, **how)
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        cells = code_cells(out)
        begun = [cell for cell in cells if cell.metadata.papermill.start_time]
        first = next((line for line in begun[-1].source.splitlines() if line.strip()), "")
        raise NotebookFailed(
            f"{notebook.name} failed in code cell {len(begun)} of {len(cells)}, which begins\n"
            f"    {first}\n{_last_lines(error)}\nThe notebook up to there is {target}.{advice(str(error))}"
        ) from None


def refresh_notebook(executed: Path, committed: Path) -> None:
    """Take the outputs of an executed copy into the committed one: no timestamps, stderr or widgets; counts from 1.

    Raises `CannotRun` if the committed notebook was edited after the run.
    """
    ran = code_cells(executed)
    notebook = nbformat.read(committed, as_version=4)
    cells = [cell for cell in notebook.cells if _is_code(cell)]
    if [cell.source for cell in ran] != [cell.source for cell in cells]:
        raise CannotRun(f"{committed.name} was edited after {executed} was run; run it again.")
    for number, (cell, run) in enumerate(zip(cells, ran), start=1):
        cell.execution_count = number
        cell.outputs = [o for o in run.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    atomic_write(committed, nbformat.writes(notebook) + "\n")


def _goes_by(path: Path, name: str) -> bool:
    return name.removesuffix(".ipynb") in (path.stem, path.stem[:2])


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])


def advice(reason: str) -> str:
    """What to do about a failure whose cause lies outside of the workbook, in a line of its own."""
    return next((f"\n{words} What was finished is kept." for sign, words in ADVICE.items() if sign in reason), "")


def _last_lines(error: Exception, count: int = 8) -> str:
    if isinstance(error, DeadKernelError):
        return f"The kernel died, most often of too little memory: {MORE_MEMORY}"
    if not (error.traceback or error.evalue):  # no memory was left for saying why
        return f"The cell ended without a reason given, most often of too little memory: {MORE_MEMORY}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback) or f"{error.ename}: {error.evalue}")
    return "\n".join(text.rstrip().splitlines()[-count:])
