"""What is the logistic regression of these rows, without each fold, along a path of penalties?

Multinomial, or of several labels one-vs-rest. All folds are fitted beside each other: they share the rows, so that
each step of all of them is one product with X. L-BFGS (Liu and Nocedal, 1989) in coordinates in which the
curvature is about the same everywhere, each penalty started from the last; a fold that has converged steps no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from topwork.probe import Floats, Ints, Labels

Singles = NDArray[np.float32]

CURVATURE = 0.25
"""Of p (1 - p), averaged over the rows where each penalty starts: what sets the coordinates, so the speed, not the
result. A quarter of it took fewer steps than a half, all of it, or a fixed 0.1 (bench/LOG.md)."""

MAX_STEPS = 100
"""L-BFGS steps per penalty; warm starts rarely need 20."""

FLAT, STEEP = 1e-6, 1e-4
"""Where a fold has converged: a step gains less than the one (nats per image, or share of the loss if that is above 1),
or no part of the gradient of the mean loss exceeds the other."""

PAIRS = 5
"""Steps that L-BFGS remembers."""

SUFFICIENT = 1e-4
"""Share of the gain that the slope promises which a step must bring (Armijo)."""

SHORTER = 20
"""Times that a step which does not bring it is shortened."""

BIG = 60.0
"""Distance in logits to a class that a fold has never seen."""


@dataclass(frozen=True)
class Fit:
    """Logits of rows u (n, r) without each of F folds: sqrt(s) u @ weight[f] + bias[f]."""

    weight: Floats  # (F, r, C) in the coordinates U sqrt(s)
    bias: Floats  # (F, C)

    def logits(self, f: int, u: Singles, s: Floats) -> Floats:
        """(n, C) without fold f."""
        result: Floats = u @ (np.sqrt(s)[:, None] * self.weight[f]) + self.bias[f]
        return result


def walk(
    u: Singles,  # (n, r)
    s: Floats,  # (r,)
    labels: Labels,
    classes: int,
    importance: Floats,  # (F, n) how much each row weighs in the fit of each fold; 0 where it is left out
    unit: Floats,  # (F,) of the penalty
    penalties: Floats,
    near: tuple[Floats, Floats] | None = None,  # (r, C), (C,) from where to start
) -> Iterator[Fit]:
    """The fit at each penalty in turn, when it is asked for.

    Minimises sum_i a_i log-loss_i + penalty * unit / 2 * ||W||^2, the bias free. Classes that have no row in a fit
    are left out of it and scored far below the others. Of several labels the loss is the sum of their binary ones;
    labels that no row has there, or every row, have an offset alone.
    """
    folds, (n, r) = len(importance), u.shape
    rows = np.maximum(1, (importance > 0).sum(axis=1))  # (F,)
    if labels.ndim == 2:
        has = (importance > 0).astype(np.float64) @ labels  # (F, C)
        missing = rows[:, None] - has
        present = (has > 0) & (missing > 0)
        bias = np.where(present, 0.0, np.log((has + 1) / (missing + 1)))  # no certainty either, where all agree
        step: _Step = _Each(labels, importance, present)
    else:
        shares = np.stack([np.bincount(labels, weights=a, minlength=classes) for a in importance]) / rows[:, None]
        present = shares > 0
        bias = np.where(present, np.log(np.maximum(shares, 1e-300)), -BIG)
        step = _OneOf(labels, importance)
    whole = bool(present.all())
    weight = np.zeros((folds, classes, r))
    if near is not None:
        weight[:] = np.where(present[:, :, None], near[0].T, 0.0)
        bias = np.where(present, near[1], bias)

    def logits(scaled: Floats, b: Floats) -> Singles:  # (A, C, r), (A, C)
        """(A, C, n)."""
        z = scaled.astype(np.float32).reshape(-1, r) @ u.T
        z += b.astype(np.float32).reshape(-1, 1)
        return z.reshape(-1, classes, n)

    for penalty in penalties:
        strength = (penalty * unit)[:, None, None]  # (F, 1, 1)
        bend = CURVATURE * step.curvature(logits(np.sqrt(s) * weight, bias)) / rows[:, None]
        even = np.sqrt(bend[:, :, None] * s + strength)  # (F, C, r): W = V / even
        stretch, ridge = np.sqrt(s) / even, strength / even**2

        def loss(
            theta: Floats, active: Ints, stretch: Floats = stretch, ridge: Floats = ridge
        ) -> tuple[Floats, Floats]:
            """Losses (A,) of these folds and their gradients, (A, C, r + 1)."""
            v, mine = theta[:, :, :r], stretch[active]
            wrong, delta = step(logits(mine * v, theta[:, :, r]), active)
            gradient = np.empty_like(theta)
            pull = ridge[active] * v
            np.multiply((delta.reshape(-1, n) @ u).reshape(v.shape), mine, out=gradient[:, :, :r])
            gradient[:, :, :r] += pull
            gradient[:, :, r] = delta.sum(axis=2)
            if not whole:
                gradient *= present[active][:, :, None]
            return wrong + np.einsum("acr,acr->a", pull, v) / 2, gradient

        found = _minimised(loss, np.concatenate([weight * even, bias[:, :, None]], axis=2), rows)
        weight, bias = found[:, :, :r] / even, found[:, :, r]
        yield Fit(weight.transpose(0, 2, 1), bias)


Loss = Callable[[Floats, Ints], tuple[Floats, Floats]]
"""From points of some of the folds, (A, ...), and which ones they are, their values (A,) and gradients (A, ...)."""


def _minimised(loss: Loss, start: Floats, rows: Ints) -> Floats:  # (F, ...), (F,)
    """Where each fold's loss, which is convex and the sum over so many rows, has converged."""
    result, shape = start.copy(), start.shape[1:]

    def at(x: Floats, active: Ints) -> tuple[Floats, Floats]:
        value, gradient = loss(x.reshape(-1, *shape), active)
        return value, gradient.reshape(x.shape)

    active, x = np.arange(len(start)), start.reshape(len(start), -1)
    value, gradient = at(x, active)
    gained = np.full(len(start), np.inf)
    pairs: list[_Pair] = []
    for _ in range(MAX_STEPS):
        going = (np.abs(gradient).max(axis=1) > STEEP * rows[active]) & (gained > FLAT)
        if not going.all():
            result[active[~going]] = x[~going].reshape(-1, *shape)
            active, x, value, gradient = active[going], x[going], value[going], gradient[going]
            pairs = [pair.of(going) for pair in pairs]
            if not len(active):
                return result
        direction = _direction(gradient, pairs)
        slope = np.einsum("an,an->a", gradient, direction)
        length, moved = np.ones(len(active)), x + direction
        new, turned = at(moved, active)
        for _ in range(SHORTER):
            far = ~(new <= value + SUFFICIENT * length * slope)
            if not far.any():
                break
            # To the lowest point of the parabola through what is known, but neither nearly all the way back nor on.
            bend = new[far] - value[far] - length[far] * slope[far]
            length[far] *= np.clip(-slope[far] * length[far] / (2 * bend), 0.1, 0.5)
            moved[far] = x[far] + length[far, None] * direction[far]
            new[far], turned[far] = at(moved[far], active[far])
        moved[far], new[far], turned[far] = x[far], value[far], gradient[far]  # nothing gained: the last step of these
        gained = (value - new) / np.maximum(rows[active], np.maximum(np.abs(value), np.abs(new)))
        pairs = [*pairs[-PAIRS + 1 :], _Pair.of_step(moved - x, turned - gradient)]
        x, value, gradient = moved, new, turned
    result[active] = x.reshape(-1, *shape)
    return result


@dataclass(frozen=True)
class _Pair:
    """A step of each fold and how it changed the gradient."""

    step: Floats  # (A, N)
    change: Floats  # (A, N)
    inverse: Floats  # (A,) of their product; 0 where rounding hid the curvature, so that the pair counts for nothing
    scale: Floats  # (A,) step length over change of the gradient

    @staticmethod
    def of_step(step: Floats, change: Floats) -> _Pair:
        product, size = np.einsum("an,an->a", step, change), np.einsum("an,an->a", change, change)
        seen = product > 1e-9 * size
        return _Pair(
            step, change, np.divide(1, product, out=np.zeros_like(product), where=seen),
            np.divide(product, size, out=np.ones_like(product), where=seen),
        )  # fmt: skip

    def of(self, folds: NDArray[np.bool_]) -> _Pair:
        return _Pair(self.step[folds], self.change[folds], self.inverse[folds], self.scale[folds])


def _direction(gradient: Floats, pairs: list[_Pair]) -> Floats:  # (A, N)
    """Downhill by the curvature that the last steps showed (the two-loop recursion)."""
    q, along = -gradient, []
    for pair in reversed(pairs):
        along.append(pair.inverse * np.einsum("an,an->a", pair.step, q))
        q -= along[-1][:, None] * pair.change
    if pairs:
        q *= pairs[-1].scale[:, None]
    for pair, share in zip(pairs, reversed(along), strict=True):
        q += (share - pair.inverse * np.einsum("an,an->a", pair.change, q))[:, None] * pair.step
    return q


class _Step(Protocol):
    def __call__(self, z: Singles, active: Ints, /) -> tuple[Floats, Singles]:
        """From logits (A, C, n) of some of the folds, which it may write over, their weighed losses (A,) and the
        gradients by the logits."""

    def curvature(self, z: Singles, /) -> Floats:
        """Weighed sums of p (1 - p) at the logits of all folds: (F, C)."""


class _OneOf:
    """Softmax: each row has one class."""

    def __init__(self, labels: Ints, importance: Floats) -> None:
        self.labels, self.each, self.importance = labels, np.arange(len(labels)), importance
        self.weight = importance.astype(np.float32)

    def __call__(self, z: Singles, active: Ints, /) -> tuple[Floats, Singles]:
        z -= z.max(axis=1, keepdims=True)
        mine = z[:, self.labels, self.each]  # (A, n)
        np.exp(z, out=z)
        total = z.sum(axis=1)
        wrong = np.einsum("an,an->a", np.log(total) - mine, self.importance[active])
        weight = self.weight[active]
        z *= (weight / total)[:, None]
        z[:, self.labels, self.each] -= weight
        return wrong, z

    def curvature(self, z: Singles, /) -> Floats:
        p = softmax(z, axis=1)
        return np.asarray(np.einsum("fcn,fn->fc", p * (1 - p), self.importance), dtype=np.float64)


class _Each:
    """Sigmoids: each row has any of the labels. Those that are not present in a fold count for nothing there."""

    def __init__(self, truth: NDArray[np.bool_], importance: Floats, present: NDArray[np.bool_]) -> None:
        self.targets, self.importance, self.present = truth.T.astype(np.float32), importance, present  # (C, n)

    def __call__(self, z: Singles, active: Ints, /) -> tuple[Floats, Singles]:
        losses = np.logaddexp(np.float32(0), z)
        losses -= self.targets * z
        weight = self.importance[active][:, None] * self.present[active][:, :, None]  # (A, C, n)
        wrong = (losses * weight).sum(axis=(1, 2))
        return wrong, (expit(z) - self.targets) * weight.astype(np.float32)

    def curvature(self, z: Singles, /) -> Floats:
        p = expit(z)
        return np.asarray(np.einsum("fcn,fn->fc", p * (1 - p), self.importance), dtype=np.float64)
