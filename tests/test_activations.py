"""Activations against the Hugging Face model; what the shuffle buffer serves, when and in which order."""

import numpy as np
import pytest
import torch

from lib.corpus import Blocks
from lib.models.activations import FAR, ShuffleBuffer, iterate_activations, run_to, shortened, typical_norms
from lib.workbook import model_store

CONTEXT = 16


@pytest.fixture(scope="module")
def model(smoke):
    return model_store.load("smoke-pythia", smoke)


@pytest.fixture(scope="module")
def blocks():
    """40 blocks of 1 to 15 counted tokens, and one of none."""
    random = np.random.default_rng(0)
    tokens = random.integers(2, 4096, (41, CONTEXT), dtype=np.int32)
    lengths = random.integers(1, CONTEXT, 41)
    lengths[7] = 0
    place = np.arange(CONTEXT)
    mask = (place > 0) & (place <= lengths[:, None])
    tokens[place > lengths[:, None]] = 1
    tokens[:, 0] = 0
    return Blocks(tokens, mask, np.arange(41, dtype=np.int32))


def test_every_architecture_gives_what_hugging_face_gives(smoke, blocks):
    places = {
        "smoke-pythia": 1,
        "smoke-mamba": 0,
        "smoke-rwkv": 0,
    }  # the last two's hidden_states leave out the embedding
    for name, place in places.items():
        model = model_store.load(name, smoke)
        found = list(iterate_activations(model, blocks, [0, 1], batch_blocks=8, exact=True))
        x = torch.cat([batch[0] for batch in found])
        with torch.no_grad():
            states = model.original_model(
                torch.from_numpy(blocks.tokens).long(), output_hidden_states=True
            ).hidden_states
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, states[place][torch.from_numpy(blocks.mask)], rtol=1e-4, atol=1e-5)
        assert all(len(batch[0]) == len(batch[1]) for batch in found)
        rounded = torch.cat([batch[1] for batch in iterate_activations(model, blocks, [0, 1], batch_blocks=8)])
        x = torch.cat([batch[1] for batch in found])
        assert rounded.dtype == torch.float32
        assert (rounded - x).square().sum() < 1e-3 * (x - x.mean(0)).square().sum(), name


def test_attention_in_one_call_is_the_one_step_by_step_which_whoever_looks_gets(model, blocks):
    tokens, patterns = torch.from_numpy(blocks.tokens).long(), []
    watch = [("blocks.0.attn.hook_pattern", lambda value, hook: patterns.append(value))]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = run_to(model, tokens, [1])[1]
        assert not patterns
        with model.hooks(fwd_hooks=watch):
            watched = run_to(model, tokens, [1])[1]
    exact = run_to(model, tokens, [1])[1]
    torch.testing.assert_close(patterns[0].sum(-1).float(), torch.ones(patterns[0].shape[:-1]), atol=0.01, rtol=0)
    errors = [(x - exact).square().sum() / (exact - exact.mean((0, 1))).square().sum() for x in (fused, watched)]
    assert max(errors) < 1e-3 and not torch.equal(fused, watched)


def test_forward_pass_ends_with_the_last_wanted_layer(model, blocks):
    ran = []
    handle = model.original_model.gpt_neox.final_layer_norm.register_forward_hook(lambda *_: ran.append(1))
    try:
        list(iterate_activations(model, blocks, [0, 1], batch_blocks=8))
    finally:
        handle.remove()
    assert not ran


def test_vectors_far_longer_than_the_typical_one_are_brought_to_its_length():
    x = torch.randn(1_000, 8, generator=torch.Generator().manual_seed(0))
    x[7] *= 200
    typical = float(x.norm(dim=1).median())
    found = shortened(x, typical)
    assert float(found[7].norm()) == pytest.approx(typical)
    assert float(torch.cosine_similarity(found[7], x[7], dim=0)) == pytest.approx(1)
    others = torch.arange(1_000) != 7
    assert torch.equal(found[others], x[others])


def test_the_typical_norm_is_the_median_and_a_text_is_read_with_it(model, blocks, caplog):
    x = {layer: torch.cat([b[layer] for b in iterate_activations(model, blocks, [0, 1], 8)]) for layer in (0, 1)}
    typical = typical_norms(model, blocks, [0, 1], 8)
    assert typical == {layer: pytest.approx(float(found.norm(dim=1).median())) for layer, found in x.items()}
    assert not caplog.text  # random weights have no vector that is so long
    low = {layer: norm / (2 * FAR) for layer, norm in typical.items()}  # as if the usual vectors were so short
    for number, batch in enumerate(iterate_activations(model, blocks, [0, 1], 8, low)):
        for layer, found in batch.items():
            assert float(found.norm(dim=1).max()) <= FAR * low[layer] * 1.001, number
    _, second = refills(buffer(model, blocks, typical=low), 2)  # the first of so small a buffer holds no batch
    assert float(second[0][0].norm(dim=1).max()) < typical[0]


def buffer(model, blocks, **more):
    settings = dict(buffer_tokens=120, batch_size=30, batch_blocks=8, seed=0) | more
    return ShuffleBuffer(model, blocks, [0, 1], **settings)


def refills(shuffled, n):
    """Batches of `n` refills: for each a list of batches, by layer."""
    served = [shuffled.next_refill() for _ in range(n)]
    return [[{layer: x[k] for layer, x in part.items()} for k in range(len(part[0]))] for part in served]


def test_batches_are_full_and_rows_are_the_same_tokens_in_all_layers(model, blocks):
    x = {layer: torch.cat([b[layer] for b in iterate_activations(model, blocks, [0, 1], 8)]) for layer in (0, 1)}
    for batch in sum(refills(buffer(model, blocks), 4), []):
        assert batch[0].shape == batch[1].shape == (30, 64)
        rows = [torch.cdist(batch[layer], x[layer]).argmin(1) for layer in (0, 1)]
        assert torch.equal(rows[0], rows[1])


def test_an_epoch_serves_every_activation_at_most_once(model, blocks):
    shuffled = buffer(model, blocks)
    per_epoch = len(blocks) // shuffled.blocks_per_refill
    served = torch.cat([batch[1] for part in refills(shuffled, per_epoch) for batch in part])
    assert len(served.unique(dim=0)) == len(served) > 0.5 * blocks.n_positions


def test_batches_mix_two_refills_of_text(model, blocks):
    shuffled = buffer(model, blocks)
    text = [blocks.mask[shuffled._block_numbers(refill)].sum() for refill in (0, 1)]
    first, second = refills(shuffled, 2)
    assert len(first) == text[0] // 2 // 30
    assert len(second) == (text[0] - text[0] // 2 + text[1] // 2) // 30


def test_same_seed_same_batches_other_seed_others(model, blocks):
    a, b, other = (refills(buffer(model, blocks, seed=seed), 2)[1][0][0] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@pytest.mark.parametrize("done", [1, 5])
def test_resumed_buffer_serves_what_the_old_one_would_have(model, blocks, done):
    expected = refills(buffer(model, blocks), done + 2)[done:]
    found = refills(buffer(model, blocks, refills_done=done), 2)
    for a, b in zip(sum(expected, []), sum(found, []), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_what_cannot_be_served_is_said_in_one_sentence(model, blocks):
    with pytest.raises(ValueError, match="at least four batches of 40 tokens"):
        buffer(model, blocks, batch_size=40)
    empty = Blocks(blocks.tokens, np.zeros_like(blocks.mask), blocks.document)
    with pytest.raises(ValueError, match="no position that counts"):
        buffer(model, empty)
