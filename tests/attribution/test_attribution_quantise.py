"""Rows in fewer bytes: what is lost, and that the files are as small as is said."""

from __future__ import annotations

import numpy as np
import pytest
from attribution_cases import store_of
from safetensors.numpy import load_file

from backcast.attribution import attribute
from backcast.attribution.quantise import DTYPES, decode, encode, layout

K = 1024


def pairs(kind: str, n: int = 200, k: int = K, cosine: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) unit rows, and as many at the given cosine from them."""
    rng = np.random.default_rng(0)
    shape = {
        "dense": np.ones((n, k)),
        "sparse": (rng.random((n, k)) < 8 / k) + 1e-9,
        "loud": np.abs(rng.standard_cauchy((n, k))),  # a few numbers outweigh the rest
    }[kind]
    x = shape * rng.normal(size=(n, k))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    z = rng.normal(size=(n, k)) * shape
    z -= (z * x).sum(1, keepdims=True) * x
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return x, cosine * x + np.sqrt(1 - cosine**2) * z


@pytest.mark.parametrize("kind", ["dense", "sparse", "loud"])
@pytest.mark.parametrize(("dtype", "error"), [("float16", 3e-4), ("int8", 6e-3), ("sign", 0.05)])
def test_inner_products_with_whole_rows_survive(dtype, error, kind):
    """Root mean square errors, of vectors of length one; a sketch's own is 1/√k = 0.03. Signs are right on average."""
    x, y = pairs(kind)
    read = decode(encode(x, dtype), dtype, K).astype(np.float64)
    errors = (read * y).sum(1) - 0.4
    assert np.sqrt(np.mean(errors**2)) <= error
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(len(errors)) + 1e-6
    if dtype == "sign":
        np.testing.assert_allclose((read * x).sum(1), 1, rtol=1e-5)  # exact along the row itself


def test_signs_of_sparse_rows_need_the_rotation():
    """Plain signs, with the row's length, are far off where most numbers are nothing."""
    x, y = pairs("sparse")
    plain = np.where(x >= 0, 1, -1) / np.sqrt(K)
    rotated = decode(encode(x, "sign"), "sign", K)
    assert np.abs((rotated * y).sum(1) - 0.4).mean() < 0.3 * np.abs((plain * y).sum(1) - 0.4).mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 5, 8, 100, 1024])
def test_rows_of_any_length_and_size_come_back_in_float32(dtype, k):
    rows = np.random.default_rng(0).normal(size=(6, k)).astype(np.float32)
    rows *= np.array([0, 1e-42, 1e-20, 1, 1e20, 1e34], dtype=np.float32)[:, None]
    tensors = encode(rows, dtype)
    codes = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
    assert {name: (codes[t.dtype.name], t.shape) for name, t in tensors.items()} == layout(dtype, 6, k)
    read = decode(tensors, dtype, k)
    assert (read.dtype, read.shape) == (np.float32, (6, k))
    assert not read[0].any()
    loss = {"float32": 0, "float16": 2**-11, "int8": 1 / 250, "sign": 1.5}[dtype]
    most = np.abs(rows).max(1) if dtype == "int8" else np.linalg.norm(rows.astype(np.float64), axis=1)
    assert (np.abs(read.astype(np.float64) - rows).max(1)[2:] <= loss * most[2:]).all()


def test_bytes_are_written_as_the_formulas_say():
    rows = np.array([[-254.0, 127, 3, 0], [0, 0, 0, 0]], dtype=np.float32)
    tensors = encode(rows, "int8")
    assert tensors["sketches"].tolist() == [[-127, 64, 2, 0], [0, 0, 0, 0]]  # halves to the even
    assert tensors["scales"].tolist() == [2, 0]
    half = encode(np.array([[98304, -3.0, 0.0]], dtype=np.float32), "float16")
    assert half["scales"].tolist() == [4]  # the least power of two that brings 98,304 below 2¹⁵
    assert half["sketches"].tolist() == [[24576, -0.75, 0]]


@pytest.mark.parametrize(
    ("dtype", "bytes_a_row"), [("float32", 4096), ("float16", 2052), ("int8", 1028), ("sign", 132)]
)
def test_files_are_as_small_as_is_said(dtype, bytes_a_row, tmp_path):
    x, _ = pairs("dense", n=64)
    store = store_of(tmp_path / "s", [x], dtype=dtype)
    (path,) = store.path.rglob("shard-*")
    assert sum(t.nbytes for t in load_file(path).values()) == 64 * bytes_a_row
    head = path.stat().st_size - 64 * bytes_a_row  # the ids, in quotes that are escaped, and a comma
    assert 64 * 68 < head < 64 * 72 + 400


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.99999), ("int8", 0.9999), ("sign", 0.95)])
@pytest.mark.parametrize("method", ["grad_dot", "grad_cos"])
def test_scores_of_a_quantised_store_follow_those_of_the_whole_one(method, dtype, least, tmp_path):
    """The target may be stored otherwise than the training examples."""
    x, y = pairs("dense", n=64, cosine=0.9)
    target = store_of(tmp_path / "target", [y[:16]], name="target")
    whole = attribute(store_of(tmp_path / "w", [x]), target, method).values
    stored = attribute(store_of(tmp_path / "q", [x], dtype=dtype), target, method).values
    assert np.corrcoef(whole.ravel(), stored.ravel())[0, 1] >= least
