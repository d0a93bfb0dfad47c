"""The explorer in a real headless browser: Chromium, from Debian's packages or wherever it is on the PATH."""

import base64
import dataclasses
import json
import re
import time

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lib.corpus import Blocks
from lib.interpret.judges import RuleJudge, examples_of
from lib.interpret.snippets import top_places
from lib.mppc.features import SparseFeatures
from lib.plots import explorer, pages

EVIL = "<script>window.pwned = 1</script>"


def made_up(n_features=30, n_layers=2, seed=0):
    """Two models over one text whose vocabulary holds markup; matches are the other's features in reverse."""
    rng = np.random.default_rng(seed)
    words = [f" w{k}" for k in range(40)] + [
        EVIL,
        "</script>",
        "&amp;",
        '"quoted"',
        "\n",
        "<img src=x onerror=window.pwned=1>",
    ]
    tokens = rng.integers(0, len(words), (12, 33)).astype(np.uint16)
    tokens[:, 0] = 0
    tokens[0, 5] = words.index(EVIL)
    mask = np.ones(tokens.shape, bool)
    mask[:, 0] = False
    blocks = Blocks(tokens, mask, np.arange(12))
    shown = []
    for name, other in (("pythia", "mamba"), ("mamba", "pythia")):
        layers = []
        for layer in range(n_layers):
            dense = np.where(
                rng.random((blocks.n_positions, n_features)) < 0.05, rng.random((blocks.n_positions, n_features)), 0
            )
            dense[4, 0] = 9  # feature 0 fires most on the markup
            layers.append(top_places(SparseFeatures.from_scipy(scipy.sparse.csr_array(dense)), blocks))
        features = np.argwhere(np.ones((n_layers, n_features)))
        mppc = np.linspace(0, 1, len(features)).astype("f4")
        match = pd.DataFrame({"mppc": mppc, "match_layer": features[::-1, 0], "match_index": features[::-1, 1]})
        shown.append(
            explorer.Shown(
                name,
                f"mini-{name}",
                dict(enumerate(layers)),
                features,
                {other: match},
                [(1 + k % 5, 5 - k % 5) for k in range(len(features))],
                words,
            )
        )
    return shown


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(explorer.page_of(made_up(), "test"), encoding="utf-8")
    return path.as_uri()


def open_page(browser, address):
    browser.get("about:blank")
    browser.get(address)
    WebDriverWait(browser, 20).until(
        lambda b: b.execute_script("return document.documentElement.dataset.ready") == "true"
    )


def listed(browser):
    return [row.text.split("\n")[0] for row in browser.find_elements(By.CSS_SELECTOR, "#list a")]


def search(browser, text):
    box = browser.find_element(By.ID, "search")
    box.clear()
    box.send_keys(text)
    time.sleep(0.4)


def test_packed_arrays_hold_what_was_given():
    shown = made_up()
    page = explorer.page_of(shown, "test")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    words = data["words"]
    assert words[0] == "" and set(words[1:]) <= set(shown[0].words)
    model = data["models"][0]
    read = lambda key, dtype: np.frombuffer(base64.b64decode(model[key]), dtype)  # noqa: E731
    tokens = read("tokens", "<u2").reshape(60, explorer.SHOWN, 17)
    centres = read("centre", "u1").reshape(60, explorer.SHOWN)
    snippet = shown[0].places[0].snippets(0, 1)[0]
    said = [shown[0].words[token] for token in snippet.tokens]
    assert [words[number] for number in tokens[0, 0]] == said + [""] * (17 - len(said))
    assert words[tokens[0, 0, centres[0, 0]]] == EVIL
    assert read("top", "<f4")[0] == 9
    matrix = shown[0].places[1].features.to_scipy()
    assert read("rate", "<f4")[30 + 7] == pytest.approx((matrix[:, [7]] != 0).mean())
    assert read("histogram", "u1").reshape(60, 12).max(1).min() == 255


def test_scores_are_those_of_whole_snippets():
    [model, _] = made_up()
    features = model.features.tolist()
    whole = [examples_of(model.places[layer].snippets(index), model.words) for layer, index in features]
    expected = [(score.complexity, score.monosemanticity) for score in RuleJudge().score(whole)]
    assert explorer.scores_of(model.places, model.features, model.words) == expected and len(set(expected)) > 2


def test_models_of_two_tokenizers_show_their_own_words():
    one, other = made_up()
    other = dataclasses.replace(other, words=[f"{word}!" for word in other.words])
    page = explorer.page_of([one, other], "test")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    for model, end in zip(data["models"], (False, True), strict=True):
        numbers = np.frombuffer(base64.b64decode(model["tokens"]), "<u2")
        assert {data["words"][k].endswith("!") for k in numbers if k} == {end}


def test_it_lists_all_features_best_first_without_errors(browser, page):
    open_page(browser, page)
    rows = listed(browser)
    assert len(rows) == 60 and rows[0] == "1/29" and rows[-1] == "0/0"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_markup_in_the_text_stays_text(browser, page):
    open_page(browser, page + "#pythia/0/0")
    assert EVIL in browser.find_element(By.ID, "detail").text
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_search_finds_tokens_and_places(browser, page):
    open_page(browser, page)
    search(browser, "1/7")
    assert listed(browser) == ["1/7"]
    search(browser, "onerror")
    assert 0 < len(listed(browser)) < 60
    search(browser, "nothing has this")
    assert listed(browser) == [] and "0 features" in browser.find_element(By.ID, "status").text


def test_links_open_a_feature_and_its_match(browser, page):
    open_page(browser, page + "#pythia/1/29")
    detail = browser.find_element(By.ID, "detail")
    assert "mini-pythia 1/29" in detail.text and "MPPC 1.000" in detail.text and "mini-mamba 0/0" in detail.text
    detail.find_element(By.LINK_TEXT, "mini-mamba 0/0").click()
    WebDriverWait(browser, 5).until(lambda b: b.current_url.endswith("#mamba/0/0"))
    assert browser.find_element(By.CSS_SELECTOR, "#detail h2").text == "mini-mamba 0/0"
    open_page(browser, page + "#pythia/7/7")
    assert "No such feature" in browser.find_element(By.ID, "detail").text


def test_layers_and_orders(browser, page):
    open_page(browser, page)
    browser.find_element(By.CSS_SELECTOR, "#layer option[value='0']").click()
    assert len(listed(browser)) == 30 and all(row.startswith("0/") for row in listed(browser))
    browser.find_element(By.CSS_SELECTOR, "#sort option[value='mppc']").click()
    assert listed(browser)[0] == "0/0"
    browser.find_element(By.CSS_SELECTOR, "#model option[value='mamba']").click()
    assert len(listed(browser)) == 60
    assert browser.find_element(By.CSS_SELECTOR, "#list a").get_attribute("href").split("#")[1].startswith("mamba/")


def test_the_keyboard_is_enough(browser, page):
    open_page(browser, page)
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    active = browser.switch_to.active_element
    assert active.get_attribute("id") == "search"
    active.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(browser, 5).until(lambda b: "#pythia/1/28" in b.current_url)
    assert "mini-pythia 1/28" in browser.find_element(By.ID, "detail").text


def test_a_phone_shows_it_in_one_column(browser, page):
    browser.set_window_size(500, 900)
    try:
        open_page(browser, page + "#pythia/0/3")
        boxes = [browser.find_element(By.CSS_SELECTOR, css).rect for css in ("nav", "article")]
        assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.set_window_size(1200, 900)


def test_a_page_of_full_size_is_there_in_two_seconds(browser, tmp_path):
    shown = made_up(n_features=5_000, n_layers=4)
    path = tmp_path / "large.html"
    path.write_text(explorer.page_of(shown, "large"), encoding="utf-8")
    assert 5e6 < path.stat().st_size < 15e6  # 40,000 features, as at mini scale
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        open_page(browser, path.as_uri())
        spent.append(time.perf_counter() - began)
    assert min(spent) < 2


def test_the_page_of_two_spaces_links_matches(browser, tmp_path):
    columns = {c: np.linspace(0, 1, 5) for c in ("ax", "ay", "bx", "by", "rho")} | {"a": range(5), "b": range(5, 10)}
    pairs = pd.DataFrame(columns).assign(token=["x", EVIL, " time", "y", "z"], concept=["", "", "time", "", ""])
    path = tmp_path / "spaces.html"
    path.write_text(pages.linked_page(pairs, "Pythia", "Mamba", "test"), encoding="utf-8")
    open_page(browser, path.as_uri())
    search(browser, "time")
    assert "Pythia #2  ↔  Mamba #7, correlation 0.50, time" in browser.find_element(By.ID, "status").text
    search(browser, EVIL)
    assert EVIL in browser.find_element(By.ID, "status").text and browser.execute_script("return window.pwned") is None
    canvas = browser.find_elements(By.TAG_NAME, "canvas")[1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(browser).move_to_element(canvas).perform()  # the middle of the map is pair 2's place
    assert "Mamba #7" in browser.find_element(By.ID, "status").text
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
