"""An artifact's key holds all that decides its bytes: text, tokenizer, weights, constants."""

import lzma
import shutil

import pytest

from lib.circuits import abilities, ioi, prompts
from lib.mppc import uncertainty
from lib.sae import training as sae_training
from lib.spaces import semantic
from lib.workbook import artifacts, controls, induction, model_store, retraining, spaces, texts, two_names
from lib.workbook.store import Store, content_key


class Asked(Exception):
    """The first artifact that a function asks for."""


@pytest.fixture
def key_of(monkeypatch, smoke):
    """The key of the artifact that a function makes, without making it."""
    for name in smoke.model_names:
        model_store.folder_of(name, smoke)  # built before it is watched what is asked for
    get = Store.get

    def ask(call, kind):
        def watched(self, asked, fields, build, version=1):
            if asked == kind:
                raise Asked(content_key(fields, version))
            return get(self, asked, fields, build, version)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "get", watched)
            with pytest.raises(Asked) as caught:
                call()
        return str(caught.value)

    return ask


def made(profile):
    a, b = profile.pythia, profile.mamba
    return {
        "corpus": lambda: texts.document_tokens(profile, "train"),
        "model_abilities": lambda: artifacts.model_abilities(a, profile),
        "saes": lambda: artifacts.trained_saes(a, profile),
        "features": lambda: artifacts.features(a, profile),
        "mppc": lambda: artifacts.mppc(a, b, profile),
        "resampled": lambda: artifacts.resampled_mppc(a, b, profile),
        "neurons": lambda: artifacts.neuron_mppc(a, b, profile),
        "by_tokens": lambda: controls.similarity_by_tokens(profile),
        "retrained": lambda: retraining._measured(profile, (0, 1), (0,)),
        "retrained_models": lambda: retraining._between_models(profile),
        "paths": lambda: induction.path_effects(b, profile),
        "heads": lambda: induction.head_effects(a, profile),
        "abilities": lambda: induction.abilities(profile, [a]),
        "names": lambda: two_names.task_table([a], profile),
        "name_effects": lambda: two_names.input_effects(b, "IOI", profile),
        "spaces": lambda: spaces.layer_scores(a, b, profile),
        "subspaces": lambda: spaces.subspace_scores(a, b, profile),
    }


def keys(profile, key_of):
    return {kind: key_of(call, kind) for kind, call in made(profile).items()}


def changed(before, after):
    return {kind for kind in before if before[kind] != after[kind]}


def test_another_text_or_tokenizer_makes_every_artifact_anew(smoke, key_of, tmp_path, monkeypatch):
    before = keys(smoke, key_of)
    assert keys(smoke, key_of) == before
    other = tmp_path / "other.jsonl.xz"
    with lzma.open(texts.DOCUMENTATION) as text, lzma.open(other, "w") as file:
        file.write(text.read()[:1_000_000].rpartition(b"\n")[0])
    with monkeypatch.context() as patch:
        patch.setattr(texts, "DOCUMENTATION", other)
        assert changed(before, keys(smoke, key_of)) == set(before)
    tokenizer = shutil.copytree(texts.TOKENIZER, tmp_path / "tokenizer")
    (tokenizer / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text().replace('"Ġthe"', '"Ġthx"'))
    monkeypatch.setattr(texts, "TOKENIZER", tokenizer)
    assert changed(before, keys(smoke, key_of)) >= set(before) - {"corpus"}


FROM_RETRAINED = {"retrained", "retrained_models"}
FROM_SAES = {"saes", "features", "mppc", "resampled", "by_tokens", "spaces", "subspaces"} | FROM_RETRAINED


@pytest.mark.parametrize(
    "module, constant, value, made_anew",
    [
        (sae_training, "L1_GAIN", 0.02, FROM_SAES),
        (sae_training, "SPARSE_SHARE", 0.5, FROM_SAES),
        (sae_training, "LOGGED_STEPS", 100, FROM_SAES),
        (uncertainty, "N_GROUPS", 50, {"resampled", "neurons"}),
        (uncertainty, "N_RESAMPLES", 500, {"resampled", "neurons"}),
        (semantic, "N_TOP", 4, {"spaces", "subspaces"}),
        (semantic, "LOWEST", 0.2, {"spaces", "subspaces"}),
        (semantic, "FEWEST", 9, {"spaces", "subspaces"}),
        (semantic, "MOST_FOR_DISTANCES", 100, {"spaces", "subspaces"}),
        (spaces, "WORD_LISTS", {"docstrings": {"types": "int"}}, {"subspaces"}),
        (ioi, "IDENTIFIERS", ["a", "b"], {"names", "name_effects"}),
        (abilities, "GAPS", (2, 4), {"abilities"}),
        (controls, "TOKEN_SHARES", (0.5, 1), {"by_tokens"}),
        (prompts, "ROLES", ("A1", "B1"), {"paths", "heads", "abilities"}),
    ],
)
def test_a_constant_that_changes_results_is_in_the_key(smoke, key_of, monkeypatch, module, constant, value, made_anew):
    before = keys(smoke, key_of)
    for place in (module, induction):  # one module imports the roles by name
        if hasattr(place, constant):
            monkeypatch.setattr(place, constant, value)
    assert changed(before, keys(smoke, key_of)) == made_anew
