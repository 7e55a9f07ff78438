"""How good is a saved model on labelled images that it has not seen?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from topwork import data, evaluate, listing, model, ranking, stores, trust
from topwork.asking import BATCH
from topwork.errors import DataError, ImageError
from topwork.records import Coverage, Dataset, Estimate, Example, Fault, Metrics
from topwork.statistics import wilson
from topwork.watch import SILENT, Watch


def judge(
    run: str | Path,
    source: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    splits: Any = None,
    image_column: str | None = None,
    label_separator: str | None = None,
    watch: Watch = SILENT,
) -> tuple[Metrics, Dataset]:
    """Evaluate a saved model on labelled images that it has not seen. `source` and what goes with it: as in fit."""
    source, columns = listing.given(
        source, labels, groups, splits, image_column=image_column, label_separator=label_separator
    )
    loaded = model.load(Path(run))
    held_out = data.read_held_out(source, loaded.classes, columns, watch=watch)
    store = stores.opened(held_out.root)

    def content(example: Example) -> bytes | ImageError:
        try:
            return store.read(example.path)
        except ImageError as error:
            return error

    if held_out.multi_label and not loaded.facts.multi_label:
        raise DataError(f"{source}: its images may have several labels; the model in {run} gives one to each")
    watch.begin("predict", len(held_out.examples))
    logits, judged, unread, strange = [], [], [], []
    with ThreadPoolExecutor() as workers:
        for start in range(0, len(held_out.examples), BATCH):
            batch = held_out.examples[start : start + BATCH]
            contents = list(workers.map(content, batch))
            unread += [
                Fault(e.path, c.kind, c.detail)
                for e, c in zip(batch, contents, strict=True)
                if isinstance(c, ImageError)
            ]
            there = [(e, c) for e, c in zip(batch, contents, strict=True) if not isinstance(c, ImageError)]
            for (example, _), answer in zip(there, loaded.predict([c for _, c in there]), strict=True):
                if answer.error is None:
                    logits.append([answer.probabilities[c] for c in loaded.classes])
                    judged.append(example)
                    strange.append(answer.unknown)
                else:
                    kind, _, detail = answer.error.partition(": ")
                    unread.append(Fault(example.path, kind, detail))
            watch.advance(len(batch))
    watch.end()
    if not judged:
        raise DataError(f"{source}: none of its {len(held_out.examples)} images could be decoded")
    held_out = replace(held_out, examples=tuple(judged), faults=(*held_out.faults, *unread))
    if loaded.facts.multi_label:
        shares, thresholds = np.array(logits), np.array(loaded.facts.thresholds)
        metrics = evaluate.several(
            logit(np.clip(shares, 1e-12, 1 - 1e-12)),
            ranking.multi_hot([held_out.labels_of(e) for e in judged], len(loaded.classes)), loaded.classes,
            decided=shares >= thresholds, thresholds=thresholds, on=source,
            groups=data.together(judged),
            independent=data.independent(judged),
        )  # fmt: skip
        return replace(metrics, unknown=_flagged(strange, source, judged)), held_out
    shares, truth, worth = np.array(logits), np.array([e.label for e in judged]), data.independent(judged)
    metrics = evaluate.metrics(
        np.log(np.maximum(shares, 1e-12)), truth, loaded.classes, temperature=1.0, on=source, independent=worth,
        groups=data.together(judged),
    )  # fmt: skip
    covered: tuple[Coverage, ...] = ()
    if loaded.facts.sets is not None:
        covered = trust.coverage(loaded.facts.sets, shares, truth, on=source, independent=worth)
    return replace(metrics, unknown=_flagged(strange, source, judged), coverage=covered), held_out


def _flagged(strange: Sequence[bool | None], on: str, judged: Sequence[Example]) -> Estimate | None:
    """The share of images that is taken for none of the classes; None where the model cannot tell."""
    known = [s for s in strange if s is not None]
    if not known:
        return None
    share = sum(known) / len(known)
    return Estimate(share, *wilson(share, data.independent(judged)), len(known), on)
