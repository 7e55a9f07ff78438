"""What speaks against the data: wrong labels, shortcuts, too few images? Asked of what a survey has measured."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from topwork import features, memo, plan, probe, shortcuts, suspects
from topwork import growth as curve
from topwork.measurement import Frozen, Measured
from topwork.records import Growth, Plan, Shortcut, Suspects, encode
from topwork.sketches import Sketches
from topwork.survey import Survey

MOST_MISSING = 0.05
"""Share of images without a sketch (passed before there were any) up to which the others' mean stands for them; where
more are missing, nothing is said of colours."""


def suspected(seen: Survey, m: Measured, frozen: Frozen, delta: float) -> Suspects | None:
    """Labels that every good place of every backbone and the head doubt, among the images that choices are made with.

    None where there are too few images, or where an image may have several labels: a missing one is not a wrong one.
    """
    labels, classes = m.labels[m.rows], m.dataset.classes
    if m.dataset.multi_label or not suspects.judged(labels, len(classes), m.groups):
        return None
    places = plan.places(seen.evidences)
    correct = np.stack([seen.evidences[e].correct[:, k] for e, k in places], axis=1)
    chosen = [places[p] for p in suspects.good(correct, m.groups, m.importance, delta=delta)]
    voters = (seen.measured[e].probes[k].scores for e, k in chosen)
    found = suspects.find([*voters, frozen.head.scores], labels, len(classes), m.groups)
    paths = [m.dataset.examples[i].path for i in m.rows]
    return suspects.record(found, paths, labels, classes, len(chosen) + 1)


def shortcut(m: Measured) -> tuple[Shortcut, ...]:
    """How well trivial numbers and the first layers tell the classes apart; of several labels per image, nothing."""
    if m.dataset.multi_label:
        return ()
    examples = [m.dataset.examples[i] for i in m.rows]
    facts = [e.facts for e in examples if e.facts is not None]
    numbers: dict[str, probe.Floats] = {}
    if len(facts) == len(examples):
        numbers |= shortcuts.facts(facts)
    sketches, missing = Sketches.under(m.cache).get([e.digest for e in examples])
    if missing.mean() <= MOST_MISSING:
        numbers |= shortcuts.colours(sketches)
        x = numbers["colour"]
        x[missing] = x[~missing].mean(axis=0)
    labels, classes, evidence = m.labels[m.rows], len(m.dataset.classes), m.evidence

    def compute() -> memo.Arrays:
        with threadpool_limits(1, "blas"):  # as for the probes (measurement.probed)
            found = shortcuts.measure(
                numbers, labels, classes, evidence.correct, evidence.mac_shares, m.groups, m.importance
            )
        return {"shortcuts": np.frombuffer(encode(found), np.uint8)}

    inputs: list[memo.Input] = [
        "shortcuts", shortcuts.FORMULA, probe.FORMULA, str(classes), labels, evidence.correct,
        np.array(evidence.mac_shares),
        np.zeros(0) if m.groups is None else m.groups,
        np.zeros(0) if m.importance is None else m.importance,
        *(part for kind, x in numbers.items() for part in (kind, x)),
    ]  # fmt: skip
    kept = memo.remembered(m.cache / "probes", inputs, compute)
    return msgspec.json.decode(kept["shortcuts"].tobytes(), type=tuple[Shortcut, ...])


def grown(m: Measured, decided: Plan, seed: int) -> Growth | None:
    """What more images would bring a head on the planned cut; None where there are too few, or several labels each."""
    labels, classes = m.labels[m.rows], len(m.dataset.classes)
    if m.dataset.multi_label or not curve.enough(labels, classes, m.groups):
        return None
    k = m.features.cuts.index(decided.cut)
    rows = curve.dealt(labels, m.groups, seed)
    groups = None if m.groups is None else m.groups[rows]
    importance = None if m.importance is None else m.importance[rows]
    whole = m.evidence.correct[rows, k]

    def compute() -> memo.Arrays:
        with threadpool_limits(1, "blas"):
            found = curve.measure(
                m.features.at(k, m.rows[rows]), labels[rows], classes, whole,
                groups=groups, importance=importance, images=len(labels), seed=seed,
            )  # fmt: skip
        return {"sizes": found.sizes, **{f"right{i}": right for i, right in enumerate(found.right)}}

    inputs: list[memo.Input] = [
        "growth", curve.FORMULA, probe.FORMULA, features.key(m.backbone), decided.cut,
        " ".join(m.dataset.examples[i].digest for i in m.rows), str(seed), labels, whole,
        np.zeros(0) if groups is None else groups,
        np.zeros(0) if importance is None else importance,
    ]  # fmt: skip
    kept: dict[str, Any] = memo.remembered(m.cache / "probes", inputs, compute)
    found = curve.Measured(kept["sizes"], tuple(kept[f"right{i}"] for i in range(len(kept["sizes"]))))
    return curve.follow(found, groups=groups, importance=importance, seed=seed)
