"""Sparse feature activations: what is written is what is read, and damage is noticed."""

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.numpy import load_file, save_file

from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures, concatenated, feature_statistics, rolled
from lib.mppc.files import (
    feature_bytes,
    is_whole,
    join_shards,
    layer_file,
    open_features,
    open_layer,
    save_features,
    shard_file,
)

ABOUT = {"features": '{"d_sae": 20, "text": null}'}


def activations(n_tokens, d_sae, rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(n_tokens, d_sae)) * (rng.random((n_tokens, d_sae)) < rate)).astype(np.float32)


def written(path, *batches, dtype="float32"):
    save_features(concatenated([SparseFeatures.from_dense(batch, dtype) for batch in batches]), path)
    return open_layer(path)


@pytest.fixture
def path(tmp_path):
    return layer_file(tmp_path, 0)


def test_batches_come_back_as_one_matrix(path):
    x = activations(500, 70)
    x[20:25] = 0
    features = written(path, x[:100], torch.tensor(x[100:101]), x[101:101], x[101:])
    assert features.shape == (500, 70) and features.nnz == np.count_nonzero(x)
    assert features.indices.dtype == np.uint16 and not features.values.flags.owndata
    np.testing.assert_array_equal(features.to_scipy().toarray(), x)
    assert [file.name for file in path.parent.iterdir()] == ["layer_00.safetensors"]


@pytest.mark.parametrize(("d_sae", "dtype"), [(65_536, np.uint16), (65_537, np.int32)])
def test_the_last_feature_fits_its_index(path, d_sae, dtype):
    x = np.zeros((2, d_sae), np.float32)
    x[1, -1] = 3
    features = written(path, x)
    assert features.indices.dtype == dtype and features.indices.tolist() == [d_sae - 1]
    assert feature_statistics(features).count[-1] == 1


def test_half_precision_and_gradients_are_accepted(path):
    x = torch.tensor(activations(50, 9)).bfloat16().requires_grad_()
    np.testing.assert_array_equal(written(path, x).to_scipy().toarray(), x.detach().float().numpy())


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_activations_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        SparseFeatures.from_dense(np.array([[0, 1], [bad, 0]], np.float32))


def test_nothing_fires(path):
    features = written(path, np.zeros((5, 3), np.float32))
    assert features.nnz == 0 and features.n_tokens == 5
    assert feature_statistics(features).constant.all()


def test_the_text_that_was_read_is_known(path):
    one = SparseFeatures.from_dense(activations(4, 3))
    save_features(SparseFeatures(one.indptr, one.indices, one.stored, one.shape, "0123abc"), path)
    assert open_layer(path).text == "0123abc"
    assert written(path, activations(4, 3)).text is None


@pytest.mark.parametrize("change", ["truncated", "longer", "empty", "zeros", "missing"])
def test_a_damaged_file_is_named(path, caplog, change):
    written(path, activations(40, 20))
    content = path.read_bytes()
    changed = {"truncated": content[:-2], "longer": content + b"\0", "empty": b"", "zeros": bytes(len(content))}
    path.write_bytes(changed.get(change, b""))
    if change == "missing":
        path.unlink()
    with pytest.raises(
        ValueError, match=f"{path} is {'missing' if change == 'missing' else 'damaged'}.* compute the features again"
    ):
        open_layer(path)
    assert not is_whole(path) and (str(path) in caplog.text) == (change != "missing")


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": None}, "indices"),
        ({"offsets": np.zeros(41, np.int32)}, "wrong types"),
        ({"values": np.ones(3, np.float32)}, "indptr announces"),
        ({"offsets": np.array([0, 9, 3], np.int64)}, "does not describe the rows"),
        ({"offsets": np.zeros(0, np.int64)}, "does not describe the rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(path, change, message):
    written(path, activations(40, 20))
    arrays = {name: array for name, array in (load_file(path) | change).items() if array is not None}
    save_file(arrays, path, ABOUT)
    with pytest.raises(ValueError, match=f"{path} is damaged.*{message}"):
        open_layer(path)


@pytest.mark.parametrize(
    "about",
    [None, {"text": "x"}, {"features": "many"}, {"features": '{"d_sae": "many", "text": null}'}, {"features": "[]"}],
)
def test_a_file_of_something_else_is_refused(path, about):
    written(path, activations(40, 20))
    save_file(load_file(path), path, about)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        open_layer(path)


def test_an_index_out_of_range_does_not_reach_memory(path):
    written(path, activations(40, 20))
    arrays = load_file(path)
    arrays["indices"][7] = 20
    save_file(arrays, path, ABOUT)
    with pytest.raises(ValueError, match="not below d_sae=20"):
        feature_statistics(open_layer(path))


def test_rolled_tokens_come_later():
    x = activations(50, 8)
    found = rolled(SparseFeatures.from_dense(x), 13)
    np.testing.assert_array_equal(found.to_scipy().toarray(), np.roll(x, 13, axis=0))


def test_statistics_are_those_of_the_dense_matrix():
    x = activations(3000, 40, rate=0.3)
    x[:, 3], x[:, 4], x[:, 5], x[:, 6] = 0, 7.3, 7.3, 0
    x[0, 5], x[2999, 6] = 0, 1
    x[:, 7] = 1e6 + np.arange(3000) % 2
    found = feature_statistics(SparseFeatures.from_scipy(scipy.sparse.coo_array(x)))
    np.testing.assert_array_equal(found.count, np.count_nonzero(x, axis=0))
    np.testing.assert_allclose(found.mean, x.mean(0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.sum_of_squares, (x.astype(np.float64) ** 2).sum(0), rtol=1e-12)
    np.testing.assert_array_equal(found.constant, (x == x[0]).all(0))
    assert found.constant.nonzero()[0].tolist() == [3, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_of_non_finite_values_are_an_error(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        feature_statistics(SparseFeatures.from_scipy(scipy.sparse.csr_array(np.array([[0, 1], [bad, 0]]))))


def test_duplicates_and_stored_zeros_of_scipy_are_cleaned():
    matrix = scipy.sparse.csr_array(([1.0, 2.0, 0.0, 4.0], [1, 1, 0, 2], [0, 3, 4]), shape=(2, 3))
    features = SparseFeatures.from_scipy(matrix)
    assert features.nnz == 2 and matrix.nnz == 4
    np.testing.assert_array_equal(features.to_scipy().toarray(), [[0, 3, 0], [0, 0, 4]])


def test_layers_of_a_model_are_opened_in_order(tmp_path):
    for layer, d_sae in enumerate((10, 20, 30)):
        written(layer_file(tmp_path, layer), activations(40, d_sae))
    assert [layer.d_sae for layer in open_features(tmp_path)] == [10, 20, 30]


def test_missing_or_different_layers_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no features"):
        open_features(tmp_path)
    written(layer_file(tmp_path, 0), activations(40, 10))
    written(layer_file(tmp_path, 2), activations(40, 10))
    with pytest.raises(ValueError, match="layer_01.safetensors is missing"):
        open_features(tmp_path)
    written(layer_file(tmp_path, 1), activations(41, 10))
    with pytest.raises(ValueError, match="differ in their number of tokens"):
        open_features(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_are_joined_into_the_file_of_one_capture(tmp_path, dtype):
    x = activations(500, 70)
    written(layer_file(tmp_path / "whole", 0), x, dtype=dtype)
    for shard, part in enumerate(np.split(x, [100, 230, 230])):
        written(shard_file(tmp_path, 0, shard), part, dtype=dtype)
    joined = layer_file(tmp_path, 0)
    join_shards(shard_file(tmp_path, 0, 0).parent, joined)
    assert joined.read_bytes() == layer_file(tmp_path / "whole", 0).read_bytes()
    assert not shard_file(tmp_path, 0, 0).parent.exists() and is_whole(joined)


def test_a_damaged_shard_is_not_joined(tmp_path):
    for shard in range(2):
        written(shard_file(tmp_path, 0, shard), activations(30, 7))
    shard_file(tmp_path, 0, 1).write_bytes(b"half")
    with pytest.raises(ValueError, match="shard_00001.safetensors is damaged"):
        join_shards(shard_file(tmp_path, 0, 0).parent, layer_file(tmp_path, 0))
    assert is_whole(shard_file(tmp_path, 0, 0)) and not layer_file(tmp_path, 0).exists()


@pytest.mark.parametrize(("d_sae", "dtype"), [(300, "float32"), (300, "float16"), (70_000, "float16")])
def test_disk_is_known_in_advance(path, d_sae, dtype):
    x = activations(64, d_sae, rate=0.02)
    written(path, x, dtype=dtype)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == feature_bytes(64, np.count_nonzero(x) / 64, d_sae, dtype)


def test_float16_rounds_values_and_refuses_what_it_cannot_hold(path):
    x = activations(200, 30)
    x[3, 4] = 1e-9  # becomes zero, and is no entry
    features = written(path, x, dtype="float16")
    assert features.stored.dtype == np.float16 and features.values.dtype == np.float32
    np.testing.assert_array_equal(features.to_scipy().toarray(), x.astype(np.float16))
    assert features.nnz == np.count_nonzero(x) - 1
    with pytest.raises(ValueError, match="1e.05 does not fit float16: set feature_dtype=float32"):
        SparseFeatures.from_dense(x + 1e5, "float16")


def test_float16_moves_mppc_by_little():
    rng = np.random.default_rng(0)
    common = activations(4_000, 60, rate=0.03)
    pair = [np.where(common > 0, common + 0.3 * rng.exponential(size=common.shape), 0).astype(np.float32) for _ in "ab"]
    found = {}
    for dtype in ("float32", "float16"):
        a, b = ([SparseFeatures.from_dense(x, dtype)] for x in pair)
        found[dtype] = max_pairwise_correlation(a, b).value
    moved = np.abs(found["float16"] - found["float32"])
    assert 0 < moved.max() < 1e-4 and found["float32"].min() > 0.5
