"""The two-hour plan names sections and exercises that its notebooks have; `tests.course` runs them."""

import nbformat
import pytest

from lib.workbook.notebooks import FOLDER, find_notebooks
from tests import course


def notebook(number):
    return nbformat.read(find_notebooks(FOLDER, [number])[0], as_version=4)


def test_every_block_has_its_cells():
    found = course.blocks()
    assert [number for _, number, _, _ in found] == ["00", "02", "03", "04", "07", "08"]
    for _, number, sections, exercises in found:
        cells = course.cells_of(notebook(number), sections, exercises)
        assert len(cells) > 5 + len(exercises) and all("answer = None" not in cell.source for cell in cells)
        assert [cell.source.count("exercises.check(") for cell in cells[len(cells) - len(exercises) :]] == [1] * len(
            exercises
        )


def test_a_block_without_exercises_ends_with_its_last_section():
    cells = course.cells_of(notebook("07"), ["The task", "Path patching (Figure 6)"], [])
    assert "in_one_pass" in cells[-1].source and not any("Table 1" in cell.source for cell in cells)


@pytest.mark.parametrize("sections, exercises", [(["A section of another notebook"], []), ([], ["07.9"])])
def test_what_the_notebook_does_not_have_is_said(sections, exercises):
    with pytest.raises(ValueError, match="the notebook has no"):
        course.cells_of(notebook("07"), sections, exercises)
