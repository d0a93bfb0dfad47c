"""The command line over small notebooks that the tests write themselves."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.engines import NotebookExecutionManager
from typer.testing import CliRunner

from lib import packages, reproduce
from lib.workbook import checks, kernels, report
from lib.workbook.checks import CannotRun
from lib.workbook.notebooks import NotebookFailed, find_notebooks, refresh_notebook, run_notebook, title_of
from lib.workbook.profiles import HOME, get_profile

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every kernel starts alone")
PARAMETERS = 'profile = "mini"\noverrides = {}'


def write(path, *sources, title="A title"):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(f"# {title}\n\nText."), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources]), path)


@pytest.fixture
def workbook(tmp_path):
    """Two notebooks, and figures and cache in a folder of the test's own."""
    folder = tmp_path / "notebooks"
    write(folder / "00_first.ipynb", "print(profile, overrides)", "import os; print(os.getcwd())", title="The first")
    write(folder / "03_second.ipynb", "import sys; print('noise', file=sys.stderr)", "sys.executable", title="The next")
    return SimpleNamespace(
        folder=folder,
        cache=tmp_path / "cache",
        figures=tmp_path / "figures",
        out=tmp_path / "figures" / "smoke" / "notebooks",
    )


@pytest.fixture(autouse=True)
def import_nothing_ahead(monkeypatch):
    """These notebooks import none of the large packages."""
    monkeypatch.setattr(kernels, "PACKAGES", ())


def command(workbook, *options):
    always = ["--notebooks", str(workbook.folder), "--profile", "smoke"]
    always += ["--set", f"cache_dir={workbook.cache}", "--set", f"figures={workbook.figures}"]
    return CliRunner().invoke(reproduce.app, [*always, *options])


def texts(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [output.get("text") or output["data"]["text/plain"] for cell in cells for output in cell.outputs]


def test_runs_in_order_with_parameters_in_the_notebooks_folder_and_this_python(workbook, tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/nonexistent/python", "-f", "{connection_file}"], "display_name": "x", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    result = command(workbook, "--set", "sae_seeds=3+4")
    assert result.exit_code == 0, result.output
    said, where = texts(workbook.out / "00_first.ipynb")
    folders = f"'cache_dir': '{workbook.cache}', 'figures': '{workbook.figures}'"
    assert said == f"smoke {{{folders}, 'sae_seeds': '3+4'}}\n"
    assert where.strip() == str(workbook.folder)
    assert texts(workbook.out / "03_second.ipynb")[-1] == repr(sys.executable)
    assert result.output.index("[1/2] 00_first done in") < result.output.index("[2/2] 03_second done in")
    assert texts(workbook.folder / "00_first.ipynb") == []


def test_ends_with_the_address_of_the_report(workbook):
    result = command(workbook, "--only", "00")
    page = workbook.out.parent / "index.html"
    assert result.exit_code == 0 and result.output.splitlines()[-1] == f"Report: {page.as_uri()}"
    assert "The first" in page.read_text() and (workbook.out / "00_first.html").exists()
    assert "01 The next" not in page.read_text() and not (workbook.out / "03_second.html").exists()


def test_a_report_that_cannot_be_written_is_said(workbook, monkeypatch):
    monkeypatch.setattr(report, "build", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    result = command(workbook, "--only", "00")
    assert result.exit_code == 1 and (workbook.out / "00_first.ipynb").exists()
    assert result.output.splitlines()[-1] == (
        f"The notebooks ran and their results are in {workbook.out.parent}, "
        "but the report could not be written: OSError: No space left on device"
    )


def test_failure_names_notebook_and_cell_and_stops(workbook):
    write(workbook.folder / "01_broken.ipynb", "a = 1", "\nwrong = a / 0\nprint(wrong)")
    result = command(workbook)
    assert result.exit_code == 1
    assert "01_broken.ipynb failed in code cell 3 of 3, which begins\n    wrong = a / 0\n" in result.output
    assert "ZeroDivisionError: division by zero" in result.output and "\x1b" not in result.output
    assert f"The notebook up to there is {workbook.out / '01_broken.ipynb'}." in result.output
    assert (workbook.out / "01_broken.ipynb").exists() and not (workbook.out / "03_second.ipynb").exists()


def test_dead_kernel_is_said(workbook):
    write(workbook.folder / "01_dies.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "1")
    result = command(workbook, "--only", "01")
    assert result.exit_code == 1
    assert "01_dies.ipynb failed in code cell 2 of 3" in result.output and "The kernel died" in result.output


def test_a_cell_that_cannot_say_why_it_failed_is_said(workbook):
    silent = "get_ipython().showtraceback = lambda *_, **__: None\nraise MemoryError"
    write(workbook.folder / "01_silent.ipynb", silent)
    result = command(workbook, "--only", "01")
    assert result.exit_code == 1
    assert "01_silent.ipynb failed in code cell 2 of 2" in result.output and "too little memory" in result.output


@pytest.mark.parametrize(
    "options, said",
    [
        (["--only", "7"], "there is no notebook '7'; the notebooks are 00_first, 03_second."),
        (["--from", "04"], "there is no notebook '04'"),
        (["--only", "00", "--from", "03"], "--only and --from leave no notebook."),
        (["--set", "layers=9"], "layers names 9, but smoke-pythia has layers 0 to 1."),
        (["--set", "expansions=3"], "did you mean 'expansion'"),
        (["--set", "expansion"], "a setting is written field=value"),
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--commit-outputs"], "--commit-outputs needs the profile mini"),
        (["--set", f"mppc_tokens={10**15}"], "GB free and profile 'smoke' needs at least"),
        (["--set", f"buffer_tokens={10**12}"], "GB of memory are free and profile 'smoke' needs at least"),
    ],
)
def test_wrong_requests_are_one_sentence_before_anything_runs(workbook, options, said):
    result = command(workbook, *options)
    assert result.exit_code == 2 and said in result.output
    assert result.output.count("\n") == 1 and not workbook.out.exists()


def test_list_shows_titles(workbook):
    result = command(workbook, "--list")
    assert [line.split(maxsplit=1) for line in result.output.splitlines()] == [
        ["00_first", "The first"],
        ["03_second", "The next"],
    ]
    write(workbook.folder / "04_x.ipynb", title="#1, the # of all")
    assert title_of(workbook.folder / "04_x.ipynb") == "#1, the # of all"


def test_choice_of_notebooks(workbook):
    write(workbook.folder / "10_last.ipynb")

    def chosen(**how):
        return [path.stem[:2] for path in find_notebooks(workbook.folder, **how)]

    assert chosen() == ["00", "03", "10"]
    assert chosen(only=["10", "00_first"]) == ["00", "10"]
    assert chosen(start="03") == chosen(start="03_second.ipynb") == ["03", "10"]
    assert chosen(only=["00", "10"], start="03") == ["10"]
    with pytest.raises(CannotRun, match="no notebooks in"):
        find_notebooks(workbook.cache)


def test_fresh_deletes_artifacts_first(workbook):
    (workbook.cache / "sae-0123456789abcdef").mkdir(parents=True)
    result = command(workbook, "--fresh", "--only", "00")
    assert result.exit_code == 0 and "Deleted 1 artifacts" in result.output
    assert not (workbook.cache / "sae-0123456789abcdef").exists()


def test_missing_and_other_packages(tmp_path, capsys):
    pins = tmp_path / "requirements.txt"
    pins.write_text('# numbers\nnumpy==0.0.1  # old\npytest\nno-such-package==1.0; platform_system == "Plan 9"\n')
    checks.check_packages(pins)
    packages.require(pins)
    assert "numpy" in capsys.readouterr().err
    pins.write_text("numpy==0.0.1\nno-such-package==1.0\n")
    with pytest.raises(SystemExit, match="not installed: no-such-package; run `pip install"):
        packages.require(pins)


def test_all_requirements_are_pinned_and_installed():
    lines = (HOME / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == []
    assert packages.faults() == ([], [])


def test_refresh_takes_outputs_only(workbook):
    committed, executed = workbook.folder / "03_second.ipynb", workbook.out / "03_second.ipynb"
    run_notebook(committed, executed, {"profile": "mini"})
    before = nbformat.read(committed, as_version=4)
    refresh_notebook(executed, committed)
    after = nbformat.read(committed, as_version=4)
    nbformat.validate(after)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.metadata for cell in after.cells] == [cell.metadata for cell in before.cells]
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == [1, 2, 3]
    assert [output.output_type for cell in after.cells[1:] for output in cell.outputs] == ["execute_result"]
    assert after.cells[-1].outputs[0].execution_count == 3
    content = committed.read_bytes()
    refresh_notebook(executed, committed)
    assert committed.read_bytes() == content

    write(committed, "sys.path")
    with pytest.raises(CannotRun, match="was edited after"):
        refresh_notebook(executed, committed)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_cleanly_and_takes_the_kernel_along(tmp_path):
    pid = tmp_path / "pid"
    wait = f"import os, time, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write(tmp_path / "notebooks" / "00_slow.ipynb", wait)
    options = ["--notebooks", str(tmp_path / "notebooks")]
    options += ["--set", f"cache_dir={tmp_path}", "--set", f"figures={tmp_path}"]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job would ignore it
        f"from lib import reproduce; reproduce.app({options!r})"
    )
    run = subprocess.Popen([sys.executable, "-c", code], cwd=HOME, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    kernel = psutil.Process(int(pid.read_text()))
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Stopped." in err and "Traceback" not in err
    assert psutil.wait_procs([kernel], timeout=30)[1] == []


@pytest.fixture
def source():
    """The process of which kernels are copied."""
    kernels.prepare()
    [process] = kernels._sources
    yield process
    kernels.discard()
    assert process.wait(timeout=30) is not None and not kernels._sources


@pytest.fixture
def with_seaborn(monkeypatch):
    monkeypatch.setattr(kernels, "PACKAGES", ("no_such_package", "seaborn"))


@only_linux
def test_kernels_are_copies_of_a_process_that_has_the_packages(workbook, with_seaborn, source):
    seen = "import os, sys\nprint(os.getppid(), 'seaborn' in sys.modules)"
    same = "import matplotlib, pandas\nprint(matplotlib.get_backend(), pandas.get_option('display.max_columns'))"
    write(workbook.folder / "00_first.ipynb", seen, same, "os.getcwd(), sys.path")
    for name in "xy":
        run_notebook(workbook.folder / "00_first.ipynb", workbook.out / f"{name}.ipynb", {})
    kernels.discard()
    run_notebook(workbook.folder / "00_first.ipynb", workbook.out / "z.ipynb", {})  # there is nothing to copy
    first, second, alone = (texts(workbook.out / f"{name}.ipynb") for name in "xyz")
    assert first[0] == second[0] == f"{source.pid} True\n" and alone[0].endswith("False\n")
    assert first[1:] == second[1:] == alone[1:] and "inline" in first[1]


@only_linux
def test_a_copy_ends_with_what_it_was_copied_from(workbook, source):
    pid = workbook.folder / "pid"
    alone = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    write(workbook.folder / "00_first.ipynb", alone)

    def kill() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        source.kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(NotebookFailed, match="The kernel died"):
        run_notebook(workbook.folder / "00_first.ipynb", workbook.out / "x.ipynb", {})
    assert not psutil.pid_exists(int(pid.read_text()))


@only_linux
def test_where_there_is_nothing_left_to_copy_a_kernel_starts_alone(workbook, source):
    source.kill()
    source.wait()
    run_notebook(workbook.folder / "00_first.ipynb", workbook.out / "x.ipynb", {"profile": "smoke"})
    assert texts(workbook.out / "x.ipynb")[0].startswith("smoke")


def test_a_notebook_is_written_at_its_end_and_seldom_before(workbook, monkeypatch):
    written = []
    monkeypatch.setattr(NotebookExecutionManager, "save", lambda manager, **_: written.append(manager.nb))
    write(workbook.folder / "00_first.ipynb", *["1"] * 9)
    run_notebook(workbook.folder / "00_first.ipynb", workbook.out / "x.ipynb", {})
    assert len(written) == 2 and texts(workbook.out / "x.ipynb") == ["1"] * 9  # as it begins and as it ends


def test_a_log_hears_when_a_notebook_begins_and_ends(workbook):
    """A log is not a terminal: whole lines, no bar."""
    result = command(workbook)
    lines = [line for line in result.output.splitlines() if line.startswith("[")]
    assert [line.rpartition(" in ")[0] or line for line in lines] == [
        "[1/2] 00_first begins", "[1/2] 00_first done", "[2/2] 03_second begins", "[2/2] 03_second done",
    ]  # fmt: skip
    assert "\r" not in result.output and "%|" not in result.output


class Terminal(io.StringIO):
    """Something to write to that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_papermill_s_bar(workbook, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run_notebook(workbook.folder / "00_first.ipynb", workbook.out / "x.ipynb", {"profile": "smoke"}, "[1/1] a title")
    shown = sys.stderr.getvalue()
    assert "[1/1] a title: " in shown and "0%|" in shown and "cell" in shown


def test_settings_survive_the_way_into_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["layers=1+2,blocks_per_document=none", "cache_dir=here", "meaningful=false", "figures=there"]
    profile = get_profile("mini", ",".join(settings))
    overrides = reproduce.overrides_for(profile, settings)
    expected = {"layers": (1, 2), "blocks_per_document": None, "meaningful": False}
    expected |= {"cache_dir": tmp_path / "here", "figures": tmp_path / "there"}
    inside = get_profile("mini", overrides)
    assert {field: getattr(inside, field) for field in expected} == expected
