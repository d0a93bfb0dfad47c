"""A model is read with the tokenizer it was trained with, or it is refused by name before anything runs."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from lib import corpus, reproduce
from lib.models import recipes, tokenizer_identity
from lib.models.tokenizer_identity import deviation, difference
from lib.workbook import checks, model_store, texts
from lib.workbook.profiles import ProfileError, get_profile

FILE = texts.TOKENIZER / "tokenizer.json"


def changed(change):
    """The shipped tokenizer after `change` of what its file says."""
    content = json.loads(FILE.read_text())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


def as_an_older_library_wrote_it(content):
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] = {key: content["model"][key] for key in ("vocab", "merges", "type", "dropout", "unk_token")}
    del content["pre_tokenizer"]["use_regex"]


def with_other_surroundings(content):
    content["model"]["vocab"] = dict(sorted(content["model"]["vocab"].items()))
    content["model"] |= {"continuing_subword_prefix": "", "unk_token": "<|endoftext|>"}
    content |= {"post_processor": None, "decoder": None, "truncation": None}
    content["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
                          "pad_type_id": 0, "pad_token": "<|padding|>"}  # fmt: skip
    content["pre_tokenizer"]["trim_offsets"] = False


@pytest.mark.parametrize("change", [as_an_older_library_wrote_it, with_other_surroundings])
def test_what_changes_no_id_is_no_difference(change):
    shipped, other = Tokenizer.from_file(str(FILE)), changed(change)
    assert difference(shipped, other) is difference(other, shipped) is None
    assert deviation(shipped, other) is deviation(other, shipped) is None
    text = "def f(x):\n        return 'naïve <|endoftext|> ﬁ'"
    assert shipped.encode(text).ids == other.encode(text).ids


def swapped(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]


def other_order_of_merges(content):
    merges = content["model"]["merges"]
    merges[0], merges[5] = merges[5], merges[0]


def token(content, text, **settings):
    about = {
        "id": 4096,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    content["added_tokens"].append(about | settings)


def without_the_last(content):
    *merges, pair = content["model"]["merges"]
    content["model"]["merges"] = merges
    del content["model"]["vocab"]["".join(pair)]


@pytest.mark.parametrize("change, said", [
    (swapped, "or with other ids: 2, 'Ġof' among them"),
    (without_the_last, "tokens that only one of them has, or with other ids: 1, "),
    (lambda content: content["model"]["vocab"].update({"Ġneverseen": 4096}), "other ids: 1, 'Ġneverseen' among them"),
    (other_order_of_merges, "they differ in their merges"),
])  # fmt: skip
def test_another_vocabulary_or_other_merges_are_another_tokenizer(change, said):
    shipped, other = Tokenizer.from_file(str(FILE)), changed(change)
    assert said in difference(shipped, other) and said in difference(other, shipped)


@pytest.mark.parametrize("change, said", [
    (lambda content: token(content, " " * 24), "they differ in their added tokens"),
    (lambda content: token(content, "assistant", special=True), "they differ in their added tokens"),
    (lambda content: content["added_tokens"].pop(), "they differ in their added tokens"),
    (lambda content: content["added_tokens"][0].update(lstrip=True), "they differ in their added tokens"),
    (lambda content: content.update(normalizer={"type": "NFKC"}), "they differ in their normalizer"),
    (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "they differ in their pre-tokenizer"),
    (lambda content: content["model"].update(ignore_merges=True), "they differ in their model"),
])  # fmt: skip
def test_what_cuts_some_texts_in_other_ways_with_one_vocabulary_is_told_apart(change, said):
    shipped, other = Tokenizer.from_file(str(FILE)), changed(change)
    assert difference(shipped, other) is difference(other, shipped) is None
    assert deviation(shipped, other) == deviation(other, shipped) == said


@pytest.fixture
def stranger(tmp_path):
    """A copy of mini-mamba, whose tokenizer a test may change."""
    return shutil.copytree(recipes.MODELS / "mini-mamba", tmp_path / "stranger")


@pytest.fixture
def other(stranger):
    """The same model, trained with another tokenizer, as a fine-tuned model's."""
    corpus.train_tokenizer(["a tokenizer of few words, and of none of the others'"], stranger)
    return stranger


MINI = get_profile("mini", device="cpu")


def test_a_model_with_another_tokenizer_is_not_loaded(other):
    with pytest.raises(ProfileError) as caught:
        model_store.load(str(other), MINI)
    said = str(caught.value)
    assert said.startswith(
        f"the text is cut by data/models/tokenizer, and the tokenizer of {other} is another (tokens that only one"
    )
    assert said.count(".") == str(other).count(".") + 1 and "choose a model that was trained with the first" in said


def test_it_is_refused_before_anything_runs(other, tmp_path):
    options = ["--set", f"cache_dir={tmp_path / 'cache'}", "--set", f"mamba={other}", "--set", "device=cpu"]
    result = CliRunner().invoke(reproduce.app, options)
    assert result.exit_code == 2
    assert f"cut by data/models/tokenizer, and the tokenizer of {other} is another" in result.output.splitlines()[-1]
    [line] = checks._tokenizers(get_profile("mini", mamba=str(other)))
    assert line.startswith("[missing] a tokenizer for both: the text is cut by data/models/tokenizer, and the")


def test_of_another_text_it_is_the_transformer_s_that_cuts(other, stranger):
    """Two models that share a tokenizer go together, whichever it is."""
    profile = get_profile("laptop", pythia=str(other), mamba=str(other), rwkv="mini-rwkv")
    model_store.require_tokenizer(str(other), profile)
    with pytest.raises(
        ProfileError, match=f"cut by the tokenizer of {other}, and the tokenizer of mini-rwkv is another"
    ):
        model_store.require_tokenizer("mini-rwkv", profile)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ProfileError, match="which has no tokenizer.json: choose a model that has one"):
        model_store.require_tokenizer(str(other), profile)


def as_two_files(folder, settings, vocabulary=lambda v: v):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary(content["model"]["vocab"])))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in content["model"]["merges"]))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


SETTINGS = dict(tokenizer_class="GPT2Tokenizer", pad_token="<|padding|>") | dict.fromkeys(
    ("bos_token", "eos_token", "unk_token"), "<|endoftext|>"
)


def test_vocabulary_and_merges_in_two_files_are_a_tokenizer_too(stranger):
    as_two_files(stranger, SETTINGS)
    model_store.require_tokenizer(str(stranger), MINI)
    (stranger / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ProfileError, match="they differ in their merges"):
        model_store.require_tokenizer(str(stranger), MINI)
    (stranger / "merges.txt").unlink()
    with pytest.raises(ProfileError, match=f"{stranger} has its vocab.json and no merges.txt, so put that beside it"):
        model_store.require_tokenizer(str(stranger), MINI)


def test_a_token_added_after_the_training_is_said_and_the_model_is_read(stranger, caplog):
    content = json.loads((stranger / "tokenizer.json").read_text())
    token(content, "assistant", special=True)
    (stranger / "tokenizer.json").write_text(json.dumps(content))
    for _ in range(2):
        assert len(model_store.load(str(stranger), MINI).tokenizer) == corpus.VOCABULARY
    assert [record.message for record in caplog.records] == [
        f"The text is cut by data/models/tokenizer; the tokenizer of {stranger} has its vocabulary and merges but "
        f"would cut some texts in other ways (they differ in their added tokens)."
    ]


def test_a_tokenizer_that_cannot_be_read_is_named(stranger):
    (stranger / "tokenizer.json").write_text("{}")
    with pytest.raises(ProfileError, match=f"the tokenizer {stranger}/tokenizer.json cannot be read: "):
        model_store.require_tokenizer(str(stranger), MINI)


def test_a_model_without_a_tokenizer_is_taken_at_its_word_and_read_with_the_text_s(stranger, caplog):
    for file in stranger.glob("tokenizer*"):
        file.unlink()
    for _ in range(2):
        model = model_store.load(str(stranger), MINI)
    assert len(model.tokenizer) == corpus.VOCABULARY
    assert [record.message for record in caplog.records] == [
        f"{stranger} brings no tokenizer: it is taken to have been trained with data/models/tokenizer, "
        "which cuts the text."
    ]
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    tokenizer_identity._allow_without.cache_clear()
    with pytest.raises(ProfileError, match=f"4096 tokens, and {stranger} brings no tokenizer and knows 50 tokens"):
        model_store.require_tokenizer(str(stranger), MINI)


def test_random_weights_were_trained_with_none(smoke):
    for name in smoke.model_names:
        model_store.require_tokenizer(name, smoke)
    random = get_profile("laptop", models="random", cache_dir=smoke.cache_dir)
    model_store.require_tokenizer(random.mamba, random)
    assert not list(smoke.cache_dir.glob("mamba-130m*"))  # it is not even built for this
