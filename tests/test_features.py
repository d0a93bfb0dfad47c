"""Sparse feature activations: what is written is what is read, and damage is noticed."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch

from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.feature_files import FeatureWriter, layer_folder, open_features, read_features, verify_features
from lib.mppc.feature_shards import feature_bytes, finished_shards
from lib.mppc.features import SparseFeatures, feature_statistics


def activations(n_tokens, d_sae, rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(n_tokens, d_sae)) * (rng.random((n_tokens, d_sae)) < rate)).astype(np.float32)


def write(folder, *batches):
    with FeatureWriter(folder, batches[0].shape[1]) as writer:
        for batch in batches:
            writer.append(batch)
    return read_features(folder)


def test_batches_come_back_as_one_matrix(tmp_path):
    x = activations(500, 70)
    x[20:25] = 0
    features = write(tmp_path / "layer", x[:100], torch.tensor(x[100:101]), x[101:101], x[101:])
    assert features.shape == (500, 70) and features.nnz == np.count_nonzero(x)
    assert features.indices.dtype == np.uint16 and not features.values.flags.owndata
    np.testing.assert_array_equal(features.to_scipy().toarray(), x)


@pytest.mark.parametrize(("d_sae", "dtype"), [(65_536, np.uint16), (65_537, np.int32)])
def test_the_last_feature_fits_its_index(tmp_path, d_sae, dtype):
    x = np.zeros((2, d_sae), np.float32)
    x[1, -1] = 3
    features = write(tmp_path, x)
    assert features.indices.dtype == dtype and features.indices.tolist() == [d_sae - 1]
    assert feature_statistics(features).count[-1] == 1


def test_half_precision_and_gradients_are_accepted(tmp_path):
    x = torch.tensor(activations(50, 9)).bfloat16().requires_grad_()
    np.testing.assert_array_equal(write(tmp_path, x).to_scipy().toarray(), x.detach().float().numpy())


def test_entries_may_come_in_any_order(tmp_path):
    x = activations(60, 30)
    rows, columns = x.nonzero()
    shuffled = np.random.default_rng(1).permutation(len(rows))
    with FeatureWriter(tmp_path, 30) as writer:
        writer.append(x)
        writer.append_entries(rows[shuffled], columns[shuffled], x[rows, columns][shuffled], 60)
        writer.append_entries(np.array([0]), np.array([2]), np.array([0.0]), 1)
    features = read_features(tmp_path)
    np.testing.assert_array_equal(features.to_scipy().toarray(), np.vstack([x, x, np.zeros((1, 30))]))
    assert features.nnz == 2 * len(rows)


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ([0, 4], [1, 1], [1, 1], "outside"),
        ([0, 1], [1, 7], [1, 1], "outside"),
        ([0, -1], [1, 1], [1, 1], "outside"),
        ([0, 1], [1, 1], [1, np.nan], "NaN or infinite"),
        ([2, 0, 2], [3, 3, 3], [1, 1, 1], "twice"),
    ],
)
def test_bad_entries_are_refused_and_leave_no_header(tmp_path, rows, columns, values, message):
    with pytest.raises(ValueError, match=message), FeatureWriter(tmp_path, 7) as writer:
        writer.append_entries(np.array(rows), np.array(columns), np.array(values, float), 4)
    with pytest.raises(ValueError, match="no finished features"):
        read_features(tmp_path)


def test_activations_of_another_width_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[n_tokens, 7\] is expected"), FeatureWriter(tmp_path, 7) as writer:
        writer.append(np.ones((3, 8), np.float32))


def test_nothing_fires(tmp_path):
    features = write(tmp_path, np.zeros((5, 3), np.float32))
    assert features.nnz == 0 and features.n_tokens == 5
    assert feature_statistics(features).constant.all()


@pytest.mark.parametrize("name", ["indptr", "indices", "values"])
@pytest.mark.parametrize("change", ["truncated", "longer", "missing"])
def test_a_damaged_file_is_named(tmp_path, name, change):
    write(tmp_path, activations(40, 20))
    path = tmp_path / f"{name}.bin"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-2], "longer": content + b"\0", "missing": b""}[change])
    if change == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=f"{name}.bin has .* bytes where its header announces"):
        read_features(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "another format"),
        ({"dtypes": {"indptr": "<i4"}}, "another format"),
        ({"shape": [40]}, "damaged"),
        ({"shape": ["x", 20]}, "damaged"),
        ({"nnz": 3}, "header announces"),
        ({"nnz": -1}, "header announces"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, message):
    write(tmp_path, activations(40, 20))
    header = tmp_path / "header.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    write(tmp_path, activations(40, 20))
    (tmp_path / "header.json").write_text('{"shape": [40')
    with pytest.raises(ValueError, match="header.json is damaged"):
        read_features(tmp_path)


def test_row_ends_that_go_back_are_refused(tmp_path):
    write(tmp_path, activations(40, 20))
    indptr = np.fromfile(tmp_path / "indptr.bin", "<i8")
    indptr[[10, 30]] = indptr[[30, 10]]
    indptr.tofile(tmp_path / "indptr.bin")
    with pytest.raises(ValueError, match="damaged"):
        read_features(tmp_path)


def test_an_index_out_of_range_does_not_reach_memory(tmp_path):
    write(tmp_path, activations(40, 20))
    indices = np.fromfile(tmp_path / "indices.bin", "<u2")
    indices[7] = 20
    indices.tofile(tmp_path / "indices.bin")
    with pytest.raises(ValueError, match="not below d_sae=20"):
        feature_statistics(read_features(tmp_path))


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
        write(layer_folder(tmp_path, layer), activations(40, d_sae))
    assert [layer.d_sae for layer in open_features(tmp_path)] == [10, 20, 30]


def test_missing_or_different_layers_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no features"):
        open_features(tmp_path)
    write(layer_folder(tmp_path, 0), activations(40, 10))
    write(layer_folder(tmp_path, 2), activations(40, 10))
    with pytest.raises(ValueError, match="layer_01 holds no finished features"):
        open_features(tmp_path)
    write(layer_folder(tmp_path, 1), activations(41, 10))
    with pytest.raises(ValueError, match="differ in their number of tokens"):
        open_features(tmp_path)


def shards_of(folder, parts, **how):
    """Write `parts`, a shard each, and return the folder's bytes."""
    with FeatureWriter(folder, parts[0].shape[1], **how) as writer:
        for part in parts[how.get("keep", 0) :]:
            writer.append(part)
            writer.end_shard()
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_killed_capture_goes_on_at_its_last_whole_shard(tmp_path, dtype):
    parts = np.split(activations(500, 70), [100, 230, 230])
    whole = shards_of(tmp_path / "whole", parts, dtype=dtype)
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "cut", 70, dtype) as writer:
        for part in parts[:2]:
            writer.append(part)
            writer.end_shard()
        writer.append(parts[3])
        raise KeyboardInterrupt
    assert finished_shards(tmp_path / "cut", 70, dtype) == 2
    assert shards_of(tmp_path / "cut", parts, dtype=dtype, keep=2) == whole
    verify_features(tmp_path / "cut")


@pytest.mark.parametrize("damage", ["flipped", "short", "journal cut", "no file"])
def test_a_damaged_shard_is_named_and_it_and_later_ones_written_again(tmp_path, caplog, damage):
    parts = np.split(activations(400, 30), 4)
    whole = shards_of(tmp_path, parts)
    path = tmp_path / ("shards.jsonl" if damage == "journal cut" else "values.bin")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) * 5 // 8] ^= 1  # in the third of four
    path.write_bytes(content if damage == "flipped" else content[: len(content) * 5 // 8])
    if damage == "no file":
        path.unlink()
    keep = finished_shards(tmp_path, 30)
    assert keep == (0 if damage == "no file" else 2)
    with pytest.raises(ValueError, match="does not describe" if damage == "journal cut" else f"shard {keep} of .*values.bin"):
        verify_features(tmp_path)
    if damage != "journal cut":  # there the journal has no more than two lines
        assert f"shard {keep} of {path} is damaged" in caplog.text
    assert shards_of(tmp_path, parts, keep=keep) == whole


def test_parts_of_several_writers_are_one_layer(tmp_path):
    parts = np.split(activations(300, 40), 3)
    whole = shards_of(tmp_path / "whole", parts)
    for k, part in enumerate(parts):
        write(tmp_path / f"part{k}", part)
    with FeatureWriter(tmp_path / "joined", 40) as writer:
        for k in range(3):
            writer.append_features(read_features(tmp_path / f"part{k}"))
            writer.end_shard()
        with pytest.raises(ValueError, match="30 features where 40"):
            writer.append_features(SparseFeatures.from_scipy(scipy.sparse.csr_array((1, 30))))
    assert contents(tmp_path / "joined") == whole


@pytest.mark.parametrize(("d_sae", "dtype"), [(300, "float32"), (300, "float16"), (70_000, "float16")])
def test_disk_is_known_in_advance(tmp_path, d_sae, dtype):
    x = activations(64, d_sae, rate=0.02)
    files = shards_of(tmp_path, [x], dtype=dtype)
    written = sum(len(content) for name, content in files.items() if name.endswith(".bin"))
    assert written == feature_bytes(64, np.count_nonzero(x) / 64, d_sae, dtype)


def test_float16_rounds_values_and_refuses_what_it_cannot_hold(tmp_path):
    x = activations(200, 30)
    x[3, 4] = 1e-9  # becomes zero, and is no entry
    shards_of(tmp_path / "half", [x], dtype="float16")
    features = read_features(tmp_path / "half")
    assert features.stored.dtype == np.float16 and features.values.dtype == np.float32
    np.testing.assert_array_equal(features.to_scipy().toarray(), x.astype(np.float16))
    assert features.nnz == np.count_nonzero(x) - 1
    with pytest.raises(ValueError, match="1e.05 does not fit float16: set feature_dtype=float32"):
        shards_of(tmp_path / "large", [x + 1e5], dtype="float16")


def test_float16_moves_mppc_by_little(tmp_path):
    rng = np.random.default_rng(0)
    common = activations(4_000, 60, rate=0.03)
    pair = [np.where(common > 0, common + 0.3 * rng.exponential(size=common.shape), 0).astype(np.float32) for _ in "ab"]
    found = {}
    for dtype in ("float32", "float16"):
        for side, x in zip("ab", pair):
            shards_of(tmp_path / dtype / side, [x], dtype=dtype)
        layers = [read_features(tmp_path / dtype / side) for side in "ab"]
        found[dtype] = max_pairwise_correlation(layers[:1], layers[1:]).value
    moved = np.abs(found["float16"] - found["float32"])
    assert 0 < moved.max() < 1e-4 and found["float32"].min() > 0.5
