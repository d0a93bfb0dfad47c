"""Notebooks in JupyterLab as a reader opens them: a real server, a real browser, *Run > Run All Cells*."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from lib.workbook import artifacts
from lib.workbook.profiles import HOME

pytestmark = pytest.mark.slow
SECONDS = 240  # a loaded machine is slow; on a free one each notebook takes about 20
SHOWN = {"00_start_here": "profile smoke", "03_feature_similarity": "smoke-pythia: "}
MENUS = """import sys
sys.path.insert(0, "..")
from lib import plots

def drawn(shape, height):
    figure, axes = plots.plt.subplots(figsize=(2, 1))
    axes.plot([0, height], "o-" if shape == "line" else "s:")
    return figure

plots.pick(drawn, "a shape", shape=["line", "dots"], height=[1, 2, 3])"""


@pytest.fixture(scope="module")
def workbook(tmp_path_factory, smoke):
    """A copy of the workbook whose two notebooks are set to smoke and hold no outputs; its artifacts are there."""
    artifacts.mppc(smoke.pythia, smoke.mamba, smoke)
    root = tmp_path_factory.mktemp("workbook")
    shutil.copytree(HOME / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOME / "requirements.txt", root)
    (root / "data").symlink_to(HOME / "data")
    (root / "notebooks").mkdir()
    for name in SHOWN:
        notebook = nbformat.read(HOME / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = f'profile = "smoke"\noverrides = {{"cache_dir": {str(smoke.cache_dir)!r}}}'
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    return root


@pytest.fixture(scope="module")
def server(workbook, tmp_path_factory):
    """JupyterLab on a free port of this computer, without a token, with folders of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = tmp_path_factory.mktemp("jupyter")
    names = (
        "JUPYTER_RUNTIME_DIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    )
    options = [
        "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={workbook}", "--IdentityProvider.token=", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    env = {**os.environ, **{name: str(own / name) for name in names}}
    with (own / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while not answers(f"{address}/api/status"):
            assert process.poll() is None and time.monotonic() < deadline, (own / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url):
    try:
        return json.load(urllib.request.urlopen(url, timeout=5))
    except OSError:
        return None


def click(browser, css):
    """Click the element once it is there and nothing lies over it."""

    def try_it(driver):
        try:
            driver.find_element(By.CSS_SELECTOR, css).click()
            return True
        except WebDriverException:
            return False

    WebDriverWait(browser, SECONDS).until(try_it, f"nothing to click at {css}")


@pytest.mark.parametrize("name", SHOWN)
def test_run_all_cells(name, server, workbook, browser):
    path = workbook / "notebooks" / f"{name}.ipynb"
    open_ready(browser, server, name)
    run_menu(browser)
    WebDriverWait(browser, SECONDS, 2).until(lambda d: finished(d, path), "not all cells were run")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [o.get("evalue") for cell in cells for o in cell.outputs if o.output_type == "error"] == []
    assert SHOWN[name] in "".join(e.text for e in browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output"))
    if name.startswith("03"):
        assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)


def test_a_menu_changes_the_figure(server, workbook, browser):
    cells = [nbformat.v4.new_code_cell(MENUS)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # else JupyterLab asks which
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), workbook / "notebooks" / "menus.ipynb")
    open_ready(browser, server, "menus")
    run_menu(browser)
    menus = WebDriverWait(browser, SECONDS).until(lambda d: d.find_elements(By.CSS_SELECTOR, ".widget-dropdown"))
    assert [menu.text.split("\n")[0] for menu in menus] == ["shape", "height"]
    seen = [WebDriverWait(browser, SECONDS).until(picture)]
    for menu, choice in zip(menus, ("dots", "3"), strict=True):
        Select(menu.find_element(By.TAG_NAME, "select")).select_by_visible_text(choice)
        WebDriverWait(browser, SECONDS).until(lambda d: picture(d) not in (None, *seen), f"{choice} changes nothing")
        seen.append(picture(browser))


def picture(browser):
    """What the one figure of the page is, or None while there is none."""
    try:
        found = browser.find_elements(By.CSS_SELECTOR, ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea img")
        return found[0].get_attribute("src") if len(found) == 1 else None
    except WebDriverException:  # it is being drawn again
        return None


def open_ready(browser, server, name):
    """Open a notebook, and wait until its kernel listens."""
    browser.get(f"{server}/lab/tree/notebooks/{name}.ipynb?reset")
    WebDriverWait(browser, SECONDS).until(lambda d: is_ready(server, name), "no kernel came up")
    idle = '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status="idle"]'
    WebDriverWait(browser, SECONDS).until(lambda d: d.find_elements(By.CSS_SELECTOR, idle), "the kernel is not idle")


def is_ready(server, name):
    """Whether the notebook's kernel is idle and the page listens to it: what is run before that is lost."""
    sessions = answers(f"{server}/api/sessions") or []
    kernels = [session["kernel"] for session in sessions if name in session["path"]]
    return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels)


def run_menu(browser):
    """Run > Run All Cells, by mouse."""
    label = WebDriverWait(browser, SECONDS).until(
        lambda d: next((e for e in d.find_elements(By.CSS_SELECTOR, ".lm-MenuBar-item") if e.text == "Run"), None)
    )
    label.click()
    click(browser, '.lm-Menu-item[data-command="runmenu:run-all"]')


def finished(browser, path):
    """Whether the saved notebook has a number at every code cell, or an error."""
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    try:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    except ValueError:  # it is being written
        return False
    return all(cell.execution_count for cell in cells) or any(
        o.output_type == "error" for cell in cells for o in cell.outputs
    )
