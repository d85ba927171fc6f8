"""`TrakProjector` in traker: end to end on a small CNN, and the facts that TRAK asks of a projector."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from trak import TRAKer
from trak.projectors import BasicProjector, ProjectionType

from backcast.errors import InputError
from backcast.kernels import TrakProjector

TRAIN, TARGETS, CLASSES = 40, 12, 3


def cnn() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8, CLASSES),
    )


def images(count: int, seed: int) -> list[torch.Tensor]:
    """Noisy bars, one direction a class."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=draw)
    x = 0.5 * torch.randn(count, 1, 8, 8, generator=draw)
    for i, c in enumerate(label.tolist()):
        x[i, 0, 3:5] += c == 0
        x[i, 0, :, 3:5] += c == 1
        x[i, 0].diagonal().add_(2.0 * (c == 2))
    return [x, label]


def trained() -> torch.nn.Module:
    model, (x, label) = cnn(), images(TRAIN, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    return model.eval()


def trak_scores(projector, folder) -> np.ndarray:
    model = trained()
    traker = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=TRAIN,
        save_dir=str(folder),
        device="cpu",
        projector=projector,
        use_half_precision=False,
        lambda_reg=30.0,
        logging_level=logging.ERROR,
    )
    train, target = images(TRAIN, 1), images(TARGETS, 2)
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for batch in zip(*(part.split(16) for part in train), strict=True):
        traker.featurize(batch, num_samples=len(batch[0]))
    traker.finalize_features()
    traker.start_scoring_checkpoint("run", model.state_dict(), model_id=0, num_targets=TARGETS)
    traker.score(target, num_samples=TARGETS)
    return np.array(traker.finalize_scores("run"))


def parameters() -> int:
    return sum(p.numel() for p in cnn().parameters())


def test_traker_gives_the_scores_that_its_own_projector_gives(tmp_path):
    ours = trak_scores(TrakProjector(parameters(), 2048), tmp_path / "ours")
    basic = BasicProjector(parameters(), 2048, seed=0, proj_type=ProjectionType.rademacher, device="cpu")
    theirs = trak_scores(basic, tmp_path / "theirs")
    assert ours.shape == (TRAIN, TARGETS)
    assert np.isfinite(ours).all()
    assert spearmanr(ours.ravel(), theirs.ravel()).statistic >= 0.95


def gradients(count: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3000, generator=torch.Generator().manual_seed(seed))


def test_norms_and_inner_products_are_kept_up_to_trak_s_scale():
    g, k = gradients(), 4096
    p = TrakProjector(3000, k).project(g, model_id=0)
    gram, found = g @ g.T, p @ p.T / k
    bound = ((gram.diagonal()[:, None] * gram.diagonal() + gram**2) / k).sqrt()
    assert ((found - gram).abs() < 4 * bound).all()


@pytest.mark.parametrize("feature", [0, 1234, 2999])
def test_first_last_and_single_features_are_projected_to_signs(feature):
    g = torch.zeros(1, 3000)
    g[0, feature] = 2.5
    assert TrakProjector(3000, 512).project(g, model_id=0).abs().eq(2.5).all()


def test_seed_and_model_id_make_the_projection_and_nothing_else():
    g = gradients()
    p = TrakProjector(3000, 512, seed=3).project(g, model_id=1)
    again = TrakProjector(3000, 512, seed=3)
    again.project(g, model_id=0)
    assert torch.equal(again.project(g, model_id=1), p)
    for other in (again.project(g, model_id=0), TrakProjector(3000, 512, seed=4).project(g, model_id=1)):
        assert torch.nn.functional.cosine_similarity(p, other).abs().max() < 0.3


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_do_not_matter(size):
    g, projector = gradients(), TrakProjector(3000, 512)
    parts = torch.cat([projector.project(part, model_id=0) for part in g.split(size)])
    torch.testing.assert_close(parts, projector.project(g, model_id=0), rtol=1e-5, atol=1e-3)


def test_a_tensor_a_parameter_is_taken_as_the_flat_gradient():
    g = gradients()
    named = {"weight": g[:, :2400].view(12, 60, 40), "bias": g[:, 2400:2999], "scale": g[:, 2999]}
    projector = TrakProjector(3000, 512)
    assert torch.equal(projector.project(named, model_id=0), projector.project(g, model_id=0))


def test_gradients_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"gradients of 3000 numbers; .* grad_dim=2999"):
        TrakProjector(2999, 512).project(gradients(), model_id=0)


def test_another_type_of_projection_is_refused():
    with pytest.raises(InputError, match="no proj_type 'normal'"):
        TrakProjector(3000, 512, proj_type="normal")
