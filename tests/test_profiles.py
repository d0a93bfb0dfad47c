"""Profiles and overrides, and the sentence that a wrong one gives."""

import pytest
from pydantic import ValidationError

from lib.workbook.profiles import HOME, PROFILES, ProfileError, get_profile, parse_overrides


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid_and_explains_its_fields(name):
    profile = get_profile(name)
    assert profile.name == name and profile.figures_dir == HOME / "figures" / name
    assert not [field for field, info in type(profile).model_fields.items() if not info.description]


def test_paper_profile_is_the_papers_setting():
    paper = get_profile("paper")
    assert (paper.expansion, paper.mppc_tokens, paper.sae_learning_rate) == (32, 1_000_000, 8e-4)
    assert (paper.corpus, paper.context_length, paper.layers) == ("openwebtext", 1024, None)
    assert (paper.pythia, paper.mamba) == ("EleutherAI/pythia-160m", "state-spaces/mamba-130m-hf")


def test_only_smoke_is_meaningless():
    assert [name for name in PROFILES if not get_profile(name).meaningful] == ["smoke"]


def test_overrides_from_dict_text_and_keywords_agree():
    text = get_profile("mini", "layers=2+5, expansion=8,cache_dir=elsewhere")
    table = get_profile("mini", {"layers": (2, 5), "expansion": 8}, cache_dir="elsewhere")
    assert text == table
    assert text.layers == (2, 5) and text.expansion == 8 and text.cache_dir.name == "elsewhere"
    assert get_profile("laptop", "layers=none").layers is None
    more = [get_profile("mini", f"more_models={value}").more_models for value in ("mini-mamba+mini-rwkv", "none")]
    assert more == [("mini-mamba", "mini-rwkv"), ()]


@pytest.mark.parametrize("nothing", [None, "", {}])
def test_no_overrides(nothing):
    assert parse_overrides(nothing) == {} and get_profile("mini", nothing) == get_profile()


def test_profiles_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        get_profile().seed = 3


@pytest.mark.parametrize(
    "name, overrides, said",
    [
        ("huge", None, "unknown profile 'huge'; the profiles are smoke, mini, laptop, paper"),
        ("mini", {"expansions": 8}, "did you mean 'expansion'"),
        ("mini", {"name": "x"}, "unknown setting 'name'"),
        ("mini", "expansion", "a setting is written field=value, not 'expansion'"),
        ("mini", {"expansion": "many"}, "bad value for expansion in profile 'mini'"),
        ("mini", {"expansion": 0}, "bad value for expansion"),
        ("mini", {"device": "tpu"}, "bad value for device"),
        ("mini", "layers=a", "bad value for layers in profile"),
        ("mini", "pythia=none", "bad value for pythia in profile 'mini': every comparison starts from the Transformer"),
        ("mini", "roles=a", "unknown setting 'roles'"),
        ("mini", {"mamba": 3}, "bad value for mamba in profile 'mini'"),
        ("mini", "more_models=", "bad value for more_models in profile 'mini'"),
        ("mini", {"buffer_tokens": 8}, "buffer_tokens=8 holds less than four of sae_batch_size"),
    ],
)
def test_wrong_settings_are_one_sentence(name, overrides, said):
    with pytest.raises(ProfileError) as error:
        get_profile(name, overrides)
    assert said in str(error.value) and "\n" not in str(error.value)
