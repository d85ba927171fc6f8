"""What the collection engine relies on: `sketcher`, for every kind."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from backcast.errors import InputError
from backcast.kernels import KINDS, SketchSpec, default_kind, sketcher
from backcast.kernels.kron import factors
from backcast.kernels.random import key, signs

OUT, IN = 21, 34


def batch(b: int = 4, t: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, t, IN, generator=generator), torch.randn(b, t, OUT, generator=generator)


def run(spec: SketchSpec, X: torch.Tensor, D: torch.Tensor, name: str = "layer") -> torch.Tensor:
    layer = sketcher(spec, name, D.shape[2], X.shape[2])
    return layer.sketch(layer.keep(X), D)


def matrix(spec: SketchSpec) -> torch.Tensor:
    """S (k, O·I) in float64, a column a unit gradient E_oi = e_o e_iᵀ."""
    X = torch.eye(IN, dtype=torch.float64).repeat(OUT, 1)[:, None]
    D = torch.eye(OUT, dtype=torch.float64).repeat_interleave(IN, 0)[:, None]
    return run(spec, X, D).T


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_layer_sketches_its_per_example_weight_gradient(kind):
    torch.manual_seed(0)
    spec, linear = SketchSpec(kind, 64), torch.nn.Linear(IN, OUT)
    X = torch.randn(4, 9, IN)
    out = linear(X)
    losses = out.tanh().square().sum((1, 2))
    (D,) = torch.autograd.grad(losses.sum(), out, retain_graph=True)
    G = torch.stack([torch.autograd.grad(loss, linear.weight, retain_graph=True)[0] for loss in losses])
    expected = G.double().flatten(1) @ matrix(spec).T
    got = run(spec, X, D)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 1e-5 * expected.norm()


@every_kind
def test_a_bias_is_a_layer_with_one_input(kind):
    _, D = batch()
    spec = SketchSpec(kind, 16)
    ones = torch.ones(*D.shape[:2], 1)
    summed = run(spec, torch.ones(len(D), 1, 1), D.sum(1, keepdim=True))
    torch.testing.assert_close(run(spec, ones, D), summed, rtol=1e-4, atol=1e-4)


@every_kind
def test_an_example_has_the_same_sketch_in_any_batch_and_with_any_padding(kind):
    spec, (X, D) = SketchSpec(kind, 64), batch(b=7)
    whole = run(spec, X, D)
    pad = torch.nn.functional.pad
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        torch.testing.assert_close(run(spec, X[part], D[part]), whole[part], rtol=1e-5, atol=1e-4)
    padded = run(spec, pad(X, (0, 0, 0, 5), value=3.0), pad(D, (0, 0, 0, 5)))
    torch.testing.assert_close(padded, whole, rtol=1e-5, atol=1e-4)


@every_kind
def test_splitting_the_gradients_to_save_memory_changes_nothing(kind, monkeypatch):
    spec, (X, D) = SketchSpec(kind, 64), batch(b=5)
    whole = run(spec, X, D)
    monkeypatch.setattr("backcast.kernels.layer.MAX_GRADIENTS", 2 * OUT * IN)
    torch.testing.assert_close(run(spec, X, D), whole, rtol=1e-5, atol=1e-4)


#: Sketches of dim 4 of a 2 × 3 gradient of 1…6, times two, at version 1. Where a change alters them, raise VERSION.
FROZEN = {
    "kron": [-3.0, 3.0, -3.0, 3.0],
    "sjlt": [14.0, 18.0, 8.0, 2.0],
    "dense": [-3.0, -7.0, -1.0, -1.0],
    "tile": [-14.0, -4.0, -2.0, -10.0],
}


@every_kind
def test_the_numbers_of_this_version_never_change(kind):
    X, D = torch.arange(1.0, 7.0).view(2, 1, 3), torch.eye(2)[:, None]
    got = run(SketchSpec(kind, 4, seed=3, version=1), X, D, "blocks.0.mlp").sum(0)
    assert (2 * got).tolist() == FROZEN[kind]


@every_kind
def test_seeds_and_layers_differ(kind):
    X, D = batch()
    sketches = [
        run(SketchSpec(kind, 64), X, D),
        run(SketchSpec(kind, 64, seed=1), X, D),
        run(SketchSpec(kind, 64), X, D, "other"),
    ]
    for i, a in enumerate(sketches):
        for b in sketches[:i]:
            cosine = torch.nn.functional.cosine_similarity(a, b)
            assert cosine.abs().max() < 0.7


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype_is_summed_in_float32_or_better(kind, dtype):
    spec, (X, D) = SketchSpec(kind, 64), (x.to(dtype) for x in batch())
    got, expected = run(spec, X, D), run(spec, X.double(), D.double())
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got - expected).norm() < 1e-6 * expected.norm()


@every_kind
def test_autocast_does_not_round_a_sketch(kind):
    spec, (X, D) = SketchSpec(kind, 64), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(spec, X, D)
    assert torch.equal(inside, run(spec, X, D))


@every_kind
def test_what_is_kept_holds_no_graph(kind):
    X, _ = batch()
    assert not sketcher(SketchSpec(kind, 16), "layer", OUT, IN).keep(X.requires_grad_()).requires_grad


def test_kron_keeps_only_the_projected_input():
    X, _ = batch()
    layer = sketcher(SketchSpec("kron", 16), "layer", OUT, IN)
    assert layer.keep(X).shape == (4, 9, 4)


def test_kron_is_the_kronecker_product_of_its_signs():
    spec = SketchSpec("kron", 12)
    P_o = signs(key(spec, "layer", "kron.out"), OUT, 4).double()
    P_i = signs(key(spec, "layer", "kron.in"), IN, 3).double()
    torch.testing.assert_close(matrix(spec), torch.kron(P_o.T, P_i.T) / 12**0.5)


@pytest.mark.parametrize(
    ("dim", "sides"),
    [
        (1, (1, 1)),
        (2, (2, 1)),
        (4, (2, 2)),
        (512, (32, 16)),
        (1000, (40, 25)),
        (1024, (32, 32)),
        (8192, (128, 64)),
    ],
)
def test_factors_are_as_near_to_a_square_as_can_be(dim, sides):
    assert factors(dim) == sides


@pytest.mark.parametrize(("dim", "good"), [(7, 6), (514, 513), (1021, 1020), (99991, 99990)])
def test_a_dim_without_like_factors_is_refused_with_the_nearest_good_one(dim, good):
    with pytest.raises(InputError, match=f"dim {dim} .* take {good}$"):
        sketcher(SketchSpec("kron", dim), "layer", OUT, IN)
    assert sketcher(SketchSpec("kron", good), "layer", OUT, IN)


def test_an_unknown_kind_is_refused_with_the_list():
    with pytest.raises(InputError, match=r"'gauss' does not exist; choose one of dense, kron, sjlt, tile$"):
        sketcher(SketchSpec("gauss"), "layer", OUT, IN)


@every_kind
@pytest.mark.parametrize("dim", [0, -4])
def test_a_dim_below_one_is_refused(kind, dim):
    with pytest.raises(InputError, match=f"dim {dim} must be at least 1"):
        sketcher(SketchSpec(kind, dim), "layer", OUT, IN)


def test_the_default_kind_is_one_that_exists():
    assert default_kind("cpu") in KINDS
    assert default_kind("cuda") in KINDS


def test_the_package_imports_without_triton_and_without_traker():
    program = (
        "import sys\n"
        "sys.modules['triton'] = sys.modules['trak'] = None\n"
        "import torch\n"
        "from backcast.kernels import KINDS, SketchSpec, sketcher\n"
        "for kind in KINDS:\n"
        "    layer = sketcher(SketchSpec(kind, 16), 'a', 3, 4)\n"
        "    assert layer.sketch(layer.keep(torch.ones(2, 5, 4)), torch.ones(2, 5, 3)).shape == (2, 16)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
