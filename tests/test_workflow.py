"""The workflow that publishes the report of `mini`: by hand only, nothing else, and with actions of named versions."""

import re
import subprocess

import yaml

from lib.workbook.profiles import HOME

PAGES = HOME / ".github" / "workflows" / "pages.yml"


def steps():
    jobs = yaml.safe_load(PAGES.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_it_starts_by_hand_only():
    assert yaml.safe_load(PAGES.read_text(encoding="utf-8"))[True] == {"workflow_dispatch": None}  # YAML reads on: so


def test_actions_are_pinned_by_version():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert len(used) == 4 and [name for name in used if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", name)] == []


def test_only_mini_is_run_and_published():
    commands = "\n".join(step.get("run", "") for step in steps())
    assert set(re.findall(r"--profile (\w+)", commands)) == {"mini"}
    assert set(re.findall(r"figures/(\w+)", commands)) == {"README", "mini"}


def test_the_folder_that_is_published_opens_on_the_report(tmp_path):
    """The step that gathers it, run on a checkout in small."""
    for path in ("README.md", "figures/README.md", "lib/README.md", "data/README.md", "notebooks/00.ipynb",
                 "figures/mini/index.html", "figures/mini/explorer.html", "figures/paper/index.html"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    [gather] = [step["run"] for step in steps() if step.get("name", "").startswith("Gather")]
    subprocess.run(["bash", "-euc", gather], cwd=tmp_path, check=True)
    site = tmp_path / "site"
    [target] = re.findall(r'url=([^"]+)"', (site / "index.html").read_text())
    assert (site / target / "index.html").exists() and (site / "figures/mini/explorer.html").exists()
    assert not (site / "figures/paper").exists()
