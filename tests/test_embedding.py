"""The flat map: neighbours stay neighbours, and the same images lie in the same places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from topwork import embedding
from topwork.embedding import components, flat


def clusters(n: int, seed: int = 0, dims: int = 20, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % count
    return (8 * rng.normal(size=(count, dims))[label] + rng.normal(size=(n, dims))).astype(np.float32), label


def test_what_lies_apart_lies_apart_on_the_map_and_neighbours_stay_so() -> None:
    x, label = clusters(150)
    y = flat(x)
    far = cdist(y, y) + np.diag(np.full(len(y), np.inf))
    assert (label[far.argmin(axis=1)] == label).all()
    assert trustworthiness(x, y, n_neighbors=8) > max(0.9, trustworthiness(x, components(x, 2), n_neighbors=8))


def test_the_same_features_lie_in_the_same_places_however_many_threads_there_are() -> None:
    x, _ = clusters(90)
    first = flat(x)
    with threadpool_limits(2, "blas"):
        np.testing.assert_array_equal(flat(x.copy()), first)
    assert first.dtype == np.float32
    assert np.abs(first).max() == pytest.approx(1)
    np.testing.assert_allclose(first.mean(axis=0), 0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(0, 12), dims=st.integers(1, 5), seed=st.integers(0, 20), same=st.booleans())
def test_few_images_or_the_same_ones_have_places_too(n: int, dims: int, seed: int, same: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)
    y = flat(x * (0 if same else 1))
    assert y.shape == (n, 2)
    assert np.isfinite(y).all() and np.abs(y).max(initial=0) <= 1 + 1e-6


def slow_affinities(z: np.ndarray, perplexity: float) -> np.ndarray:
    """By the paper: a precision for each image by bisection, over all others."""
    d, n = cdist(z, z, "sqeuclidean"), len(z)
    p = np.zeros((n, n))
    for i in range(n):
        others = np.delete(np.arange(n), i)
        low, high = 1e-8, 1e8
        for _ in range(100):
            middle = np.sqrt(low * high)
            row = softmax(-middle * d[i, others])
            entropy = -(row * np.log(np.maximum(row, 1e-300))).sum()
            low, high = (middle, high) if entropy > np.log(perplexity) else (low, middle)
        p[i, others] = row
    return (p + p.T) / (2 * n)


def test_the_affinities_are_those_of_the_paper() -> None:
    """Within what three times the perplexity of neighbours hold."""
    z, _ = clusters(31, dims=4)
    found = embedding._affinities(z, 10.0).toarray()
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(found, slow_affinities(z.astype(float), 10.0), atol=2e-5)


def test_a_step_follows_the_gradient_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without momentum: 4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2), with p exaggerated or not."""
    rng, n = np.random.default_rng(2), 40
    p = embedding._affinities(rng.normal(size=(n, 5)).astype(np.float32), 8.0)
    y = rng.normal(size=(n, 2)).astype(np.float32)
    for pushed in (0, 1):
        monkeypatch.setattr(embedding, "STEPS", 1)
        monkeypatch.setattr(embedding, "PUSHED", pushed)
        near = 1 / (1 + cdist(y, y, "sqeuclidean"))
        np.fill_diagonal(near, 0)
        force = ((embedding.EXAGGERATION if pushed else 1) * p.toarray() - near / near.sum()) * near
        slope = 4 * (force.sum(axis=1)[:, None] * y - force @ y)
        gain = np.where(slope != 0, 1.2, 1.0)  # the speed was zero, whose sign is another
        wanted = y - 10.0 * gain * slope
        np.testing.assert_allclose(embedding._settled(p, y), wanted - wanted.mean(axis=0), atol=1e-4)


def test_components_are_those_of_the_centred_features() -> None:
    x = np.random.default_rng(3).normal(size=(30, 6)).astype(np.float32)
    for tall in (x, x.T.copy()):
        centred = tall - tall.mean(axis=0)
        singular = np.linalg.svd(centred, compute_uv=False)
        found = components(tall, 3)
        np.testing.assert_allclose((found.astype(float) ** 2).sum(axis=0), singular[:3] ** 2, rtol=1e-4)
        assert (found[np.abs(found).argmax(axis=0), range(3)] > 0).all()
