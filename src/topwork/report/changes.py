"""What would change the answer? Never nothing: what was not tried is told, too."""

from __future__ import annotations

from collections.abc import Iterator

from topwork.records import RunRecord


def changes(record: RunRecord) -> list[tuple[str, str]]:
    """Each in a word, and in a sentence."""
    return [_images(record), _cut(record), *_backbone(record), _training(record), *_data(record)]


def _images(record: RunRecord) -> tuple[str, str]:
    if record.growth is not None:
        return "More images", record.growth.reason
    if record.metrics.multi_label is not None:
        return "More images", "What they would bring is not measured where an image may have several labels."
    return "More images", "There are too few to tell what more of them would bring."


def _cut(record: RunRecord) -> tuple[str, str]:
    plan = record.plan
    if plan.decided:
        cost = f"the accuracy that a cheaper cut may cost, here {plan.delta:.3g}"
        return "Another cut", f"These images decide it. Another --delta ({cost}) may choose another."
    if plan.more_images:
        tells = f"about {plan.more_images:,} more labelled images would tell whether a cheaper one will do"
        return "Another cut", f"Undecided: {tells}."
    return "Another cut", "Undecided, and more images would hardly tell: the places are as good as equal."


def _backbone(record: RunRecord) -> Iterator[tuple[str, str]]:
    unseen = list(dict.fromkeys(s.backbone for s in record.backbones if s.fate == "left out"))
    if len(record.backbones) == 1:
        yield "Another backbone", "None but this one was asked for: --backbone NAME measures others beside it."
    elif unseen:
        yield "Another backbone", f"Left out, for the reasons above: {', '.join(unseen)}."


def _training(record: RunRecord) -> tuple[str, str]:
    tuning = record.tuning
    if tuning is not None:
        minutes = f"{tuning.spent_seconds / 60:.1f} of {tuning.budget_seconds / 60:.1f} minutes were spent on training"
        return "Another budget", f"{tuning.reason} {minutes}; a larger --budget tries more."
    if record.metrics.multi_label is not None:
        return "Training the kept layers", "Not tried where an image may have several labels."
    return (
        "Training the kept layers",
        "A head alone was asked for. Without --strategy head, training more is tried, and tested against it.",
    )


def _data(record: RunRecord) -> Iterator[tuple[str, str]]:
    groups, suspects = record.groups, record.suspects
    if groups is not None and groups.across:
        yield "Another split", f"{groups.across:,} training images seem to show a scene of your test part, too."
    if groups is not None and groups.inflation is not None and (groups.inflation_low or 0.0) > 0:
        better = f"With photos of one scene on both sides it would look {100 * groups.inflation:.1f} points better"
        yield "New scenes", f"{better}; so they were kept on one side, and the result is what to expect of new scenes."
    if suspects is not None and suspects.wrong:
        labels = "1 label looks" if suspects.wrong == 1 else f"{suspects.wrong:,} labels look"
        yield "Better labels", f"{labels} wrong; they are shown above."
    for s in record.shortcuts:
        if s.warned:
            yield "Other photographs", f"It may be learning the {s.kind}: take some that do not differ in it by class."
