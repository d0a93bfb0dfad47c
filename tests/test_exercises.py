"""Exercises: the solutions that the notebooks print are right, and every mistake that a checker knows is recognised.

Solutions are read from the notebooks and run after the cells they depend on, with the smoke profile.
"""

import ast
import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib import exercises, plots
from lib.exercises.answers import EXACT, plain, same
from lib.mppc import controls
from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures, feature_statistics, rolled
from lib.spaces import semantic
from lib.workbook import artifacts, induction, outputs
from lib.workbook.notebooks import find_notebooks
from lib.workbook.profiles import HOME, PARTS, LeftOut
from tests.course import SOLUTION

HEADING = re.compile(r"^### Exercise (\d\d\.\d) \((easy|medium|hard), (\d+) minutes\)$", re.M)
NOTEBOOKS = {path.stem[:2]: path for path in find_notebooks(HOME / "notebooks")}


def exercise_cells():
    """Name of an exercise → the text cell that sets it, the code cell that checks it."""
    found = {}
    for path in NOTEBOOKS.values():
        cells = nbformat.read(path, as_version=4).cells
        for text, code in zip(cells, cells[1:]):
            for name, _, _ in HEADING.findall(text.source) if text.cell_type == "markdown" else []:
                found[name] = (text.source, code.source)
    return found


CELLS = exercise_cells()
# Profiles of which nothing is read but that no model is wanting, and that the weights are not or are random.
UNREAD = SimpleNamespace(lacking=lambda needs: (), meaningful=True)
RANDOM = SimpleNamespace(lacking=lambda needs: (), meaningful=False)
each_exercise = pytest.mark.parametrize("name", list(exercises.known()))


# ------------------------------------------------------------------------------------------- the notebooks


def test_notebooks_and_checkers_have_the_same_exercises():
    assert sorted(CELLS) == sorted(exercises.known())
    numbers = pd.Series([name[:2] for name in CELLS]).value_counts()
    assert numbers.between(2, 5).all() and set(NOTEBOOKS) - set(numbers.index) == {"99"}


def test_exercises_become_harder():
    levels = pd.Series({name: HEADING.search(text)[2] for name, (text, _) in CELLS.items()}).map(
        {"easy": 0, "medium": 1, "hard": 2}
    )
    assert all(part.sort_index().is_monotonic_increasing for _, part in levels.groupby(levels.index.str[:2]))


@each_exercise
def test_exercise_is_set_as_all_are(name):
    text, code = CELLS[name]
    assert text.count("<details>") == text.count("</details>") == 2 and "<summary>Hint</summary>" in text
    assert SOLUTION.search(text) and re.search(r"\)\n\n★{1,3} ", text)
    assert code == f'# NBVAL_CHECK_OUTPUT\nanswer = None\nexercises.check("{name}", answer, settings)'


@pytest.mark.parametrize("number", sorted({name[:2] for name in exercises.known()}))
def test_last_sections(number):
    text = "\n".join(c.source for c in nbformat.read(NOTEBOOKS[number], 4).cells if c.cell_type == "markdown")
    sections = re.findall(r"^## (.*)$", text, re.M)
    assert sections[-3:] == ["Paper versus ours", "What could be wrong", "Exercises"]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """No UMAP for a figure that nothing reads."""
    monkeypatch.setattr(semantic, "umap", lambda rows, seed: rows[:, :2])


# ------------------------------------------------------------------------------------------- solutions


def names_in(code):
    """Names that a piece of code reads, and names that it makes."""
    reads, makes = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (reads if isinstance(node.ctx, ast.Load) else makes).add(node.id)
        elif isinstance(node, ast.alias):
            makes.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef):
            makes.add(node.name)
    return reads, makes


def needed(cells, code):
    """Numbers of the cells that make, directly or not, what `code` reads."""
    wanted, found = names_in(code)[0], []
    for number in range(len(cells) - 1, -1, -1):
        reads, makes = names_in(cells[number])
        if makes & wanted:
            found.append(number)
            wanted |= reads
    return found[::-1]


@pytest.fixture(scope="module")
def workbench(smoke):
    """Runs a solution after the notebook's cells it needs, each run once; `settings` is the smoke profile."""
    rooms = {}

    def solve(name):
        cells, space, done = rooms.setdefault(name[:2], (cells_of(name[:2]), {"settings": smoke}, set()))
        solution = SOLUTION.search(CELLS[name][0])[1]
        for number in needed(cells, solution):
            if number not in done:
                exec(compile(cells[number], f"{name} cell {number}", "exec"), space)
                done.add(number)
        exec(compile(solution, f"{name} solution", "exec"), space)
        return space["answer"]

    return solve


def cells_of(number):
    """Code cells of a notebook, without those that choose the profile, check answers or only show."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[number], 4).cells if cell.cell_type == "code"]
    made = [re.sub(r"^settings = .*$", "", source, flags=re.M) for source in cells]
    return [source for source in made if "exercises.check(" not in source and "sys.path.insert" not in source]


@each_exercise
def test_solution_passes(name, smoke, workbench, monkeypatch):
    monkeypatch.setattr(outputs, "save_figure", lambda figure, *_: plots.plt.close(figure))
    verdict = exercises.verdict(name, workbench(name), smoke)
    assert verdict == exercises.RIGHT, verdict


# ------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def made_up():
    """Features of four models that share some of their series, some of which never fire: layers 2, 2, 4 and 3."""
    rng = np.random.default_rng(1)
    n_tokens, n_features, hidden = 4_096, 30, rng.random((2, 4_096, 20))

    def layer(depth, noise):
        chosen = hidden[round(depth * 1.4) % 2][:, rng.integers(0, 20, n_features)]
        parts = chosen * (1 - noise) + noise * rng.random((n_tokens, n_features))
        dense = np.maximum(parts - np.linspace(0.55, 0.99, n_features) + 0.2 * noise, 0)
        dense[:, :3] = 0
        return SparseFeatures.from_scipy(scipy.sparse.csr_array(np.round(dense, 3)))

    sizes = {"smoke-pythia": 2, "smoke-pythia-seed1": 2, "smoke-mamba": 4, "smoke-rwkv": 3, "second": 2}
    noisier = zip(sizes, sizes.values(), np.arange(len(sizes)) * 0.05 + 0.04, strict=True)
    return {name: [layer(k / n, noise + 0.03 * k) for k in range(n)] for name, n, noise in noisier}


@pytest.fixture
def made_up_artifacts(made_up, monkeypatch):
    """The made-up features in the place of the smoke profile's, and tables in which all mistakes differ."""

    def features(name, profile, seed=None):
        return made_up["second" if seed == profile.sae_seeds[-1] else name]

    def mppc(a, b, profile, seed_b=None, null=False):
        own, other = features(a, profile), features(b, profile, seed_b)
        other = [rolled(layer, 1_500) for layer in other] if null else other
        return tuple(with_rates(result, of) for result, of in zip(max_pairwise_correlations(own, other), (own, other)))

    def by_match_layer(a, b, profile):
        return controls.by_match_layer(features(a, profile), features(b, profile))

    def heads(name, profile):
        place = {"smoke-pythia": (1, 0), "smoke-pythia-seed1": (1, 2)}[name]
        strong = {("logits", *place), ("induction head", 0, 3)}
        grid = itertools.product((("logits", "B′"), ("induction head", "A′")), (0, 1), range(4))
        return pd.DataFrame(
            {"measure": measure, "corrupt": corrupt, "layer": layer, "head": head,
             "mean_logit_diff": -2.0 if (measure, layer, head) in strong else 0.1 * head}
            for (measure, corrupt), layer, head in grid
        )  # fmt: skip

    monkeypatch.setattr(artifacts, "features", features)
    monkeypatch.setattr(artifacts, "mppc", mppc)
    monkeypatch.setattr(artifacts, "mppc_by_match_layer", by_match_layer)
    monkeypatch.setattr(induction, "head_effects", heads)


def with_rates(result, layers):
    rates = np.concatenate([feature_statistics(layer).count / layer.n_tokens for layer in layers])
    return result.to_frame().assign(firing_rate=rates)


MADE_UP = ("03", "04", "05", "07.1", "09")


def once(answer):
    """An answer that is computed once for one profile: every verdict asks for the right one and for all mistakes."""
    found = {}

    def again(profile, **others):
        key = repr(others)
        if key not in found:
            found[key] = answer(profile, **others)
        return found[key]

    return again


@each_exercise
def test_every_mistake_is_recognised(name, smoke, request, monkeypatch):
    if name.startswith(MADE_UP):
        request.getfixturevalue("made_up_artifacts")
    known = exercises.known()[name]
    mistakes = {why: once(mistake) if callable(mistake) else mistake for why, mistake in known.mistakes.items()}
    exercise = replace(known, right=once(known.right), mistakes=mistakes)
    monkeypatch.setitem(exercises.known(), name, exercise)
    right = plain(exercise.right(smoke))
    assert exercises.verdict(name, right, smoke) == exercises.RIGHT and len(exercise.mistakes) >= 2
    for why in exercise.mistakes:
        answer = exercise.wrong(why, smoke)
        assert not same(plain(answer), right, EXACT), f"{why}: {answer} is right"
        verdict = exercises.verdict(name, answer, smoke)
        assert verdict.startswith("not yet.") and why[1:] in verdict, f"{why}: {verdict}"


# ------------------------------------------------------------------------------------------- forms


@each_exercise
@pytest.mark.parametrize("nothing", [None, ...])
def test_no_answer_is_a_reminder_and_costs_nothing(name, nothing, capsys):
    exercises.check(name, nothing, UNREAD)
    said = capsys.readouterr().out
    asks = exercises.known()[name].asks
    assert said == f"Exercise {name}: put {asks} in the place of None and run this cell again.\n"


@pytest.fixture
def toy(monkeypatch):
    """Checks an answer against a given right one."""

    def check(answer, right):
        monkeypatch.setitem(exercises.known(), "00.0", exercises.Exercise("it", lambda profile: right, {}))
        verdict = exercises.verdict("00.0", answer, UNREAD)
        return verdict == exercises.RIGHT or verdict

    return check


@pytest.mark.parametrize(
    "answer, right, said",
    [
        (np.float32(0.3), 0.3, True),
        (0.3004, 0.3, True),
        (pd.Series([1, 2]), (1, 2), True),
        (np.array([0.3]), 0.3, "shape (1,): take `.item()`"),
        (np.ones(9), 0.3, "shape (9,): it still has to be brought down to one"),
        ("0.3", 0.3, "not a text"),
        (True, 1.0, "not True or False"),
        (np.nan, 0.3, "It is NaN"),
        (30, 0.3, "not per cent"),
        (-0.3, 0.3, "sign"),
        (0.7, 0.3, "complement"),
        (5, 4, "one too many"),
        (0.303, 0.3, "close"),
        (0.9, 0.31, "too high"),
        (np.mean, 0.3, "function"),
        (np.ones((3, 1)), np.ones(3), "shape (3,) is asked for, got (3, 1)"),
        (np.ones((3, 2)), np.ones((2, 3)), "exchanged"),
        (np.ones(4), np.ones(3), "shape (3,) is asked for, got (4,)"),
        ([1, np.nan], [1, 2], "NaN"),
        ([11, 12], [10, 11], "one too high"),
        ([2, 1], [1, 2], "reversed"),
        ([2, 1, 3], [1, 2, 3], "their order is not"),
        ([1, 9, 3], [1, 2, 3], "1 of 3 entries are wrong, the first at place 1"),
        (7, [1, 2], "an array of shape (2,) is asked for, not a number"),
        (pd.Series(["a", 1]), [1, 2], "not a list of mixed things"),
        (-2, 3, "too low"),
    ],
)
def test_what_is_said_of_an_answer(answer, right, said, toy):
    found = toy(answer, right)
    assert found is True if said is True else said.casefold() in found.casefold(), found


def test_the_noise_of_processors_is_forgiven_where_weights_are_random_only(monkeypatch):
    monkeypatch.setitem(exercises.known(), "00.0", exercises.Exercise("it", lambda profile: 1.0e-6, {}))
    assert exercises.verdict("00.0", 1.05e-6, RANDOM) == exercises.RIGHT
    assert exercises.verdict("00.0", 1.05e-6, UNREAD).startswith("not yet.")


@pytest.mark.parametrize("answer, right", [(0.7424, True), (0.742, True), (0.7434, False), (0.743, True), (0.5, False)])
def test_a_mistake_near_the_right_answer_is_no_rounding(answer, right, monkeypatch):
    near = exercises.Exercise("it", lambda profile: 0.7424, {"dead features count": lambda profile: 0.7434})
    monkeypatch.setitem(exercises.known(), "00.0", near)
    verdict = exercises.verdict("00.0", answer, UNREAD)
    assert (verdict == exercises.RIGHT) is right and ("Dead features count" in verdict) == (answer == 0.7434)


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(ValueError, match="there is no exercise '03.9'; the exercises are 00.1"):
        exercises.check("03.9", 1, None)


# ------------------------------------------------------------------------------------------- without a model


@each_exercise
def test_an_exercise_needs_the_models_that_it_names_and_no_others(name, smoke):
    exercise = exercises.known()[name]
    others = list(smoke.roles)[1:]
    fewest = smoke.changed(**{role: None for role in others if role not in exercise.needs.replace(",", "").split()})
    said = exercises.verdict(name, float("inf"), fewest)
    assert said.startswith("not yet.")  # known mistakes that need another model are no trouble
    for role in set(others) - set(fewest.without):
        without = smoke.changed(**{role: None})
        if without.lacking(exercise.needs):
            for answer in (None, 1.0):
                said = f"left out: this run was made without {PARTS[role]} ({role}=none)."
                assert exercises.verdict(name, answer, without) == said
            with pytest.raises((LeftOut, KeyError)):  # no such model, or no such column
                exercise.right(without)


@pytest.mark.parametrize(
    ("guess", "truth", "said"),
    [
        (None, 0.5662, "Mean MPPC: 0.566.\n"),
        (0.7, 0.5662, "Mean MPPC: 0.566; your guess was 0.7.\n"),
        (True, False, "Mean MPPC: no; your guess was yes.\n"),
        ("Mamba", "Pythia", "Mean MPPC: Pythia; your guess was Mamba.\n"),
    ],
)
def test_a_guess_stands_beside_the_truth(guess, truth, said, capsys):
    exercises.compare(guess, truth, "Mean MPPC")
    assert capsys.readouterr().out == said
