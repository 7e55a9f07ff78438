"""What should whoever is handed the model know? Its README.md: metadata as the Hugging Face hub reads it, and a text.

Drawn from the run's record alone. It holds no path of the user's, and no name in it can break its Markdown or its YAML.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from topwork.records import (
    BackboneFacts,
    ClassMetrics,
    Estimate,
    LabelMetrics,
    Metrics,
    MultiLabelMetrics,
    RunRecord,
)

NAME = "README.md"
"""What the hub, and people, look for in a model's folder."""

HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "apple-ascl", "apple-amlr", "gemma",
    "fair-noncommercial-research-license", "unknown",
}  # fmt: skip
"""Of the licences that torchvision, timm and packages of weights state, those that the hub knows by this name
(huggingface.co/docs/hub/repositories-licenses); any other is `other` there, with its name."""

HUB = "hf.co/"
"""How the origin of weights begins that have a repository on the hub."""

LISTED = 30  # classes that the first sentence names
SHOWN_CLASSES = 200  # rows of the table of classes; of more, those that are found least
SHOWN_PAIRS, SHOWN_WEAK = 8, 3
FEW = 20  # judged images of a class, below which it is named: half of its interval is then some 20 points


def text(record: RunRecord) -> str:
    """The whole card: metadata between two lines of ---, then Markdown."""
    parts = (
        _head(record), _use(record), _data(record), _result(record), _beyond(record), _limits(record),
        _licences(record), _made(record),
    )  # fmt: skip
    body = "\n\n".join("\n".join(lines) for part in parts for lines in part if lines)
    return f"---\n{metadata(record)}\n---\n\n{body}\n"


def metadata(record: RunRecord) -> str:
    """The part that the hub reads, as YAML: licence of the weights, kind of model, result."""
    import yaml  # noqa: PLC0415 (comes with huggingface_hub)
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415 (1.4 s, if timm has not loaded it)

    licence = _licence(record.backbone)
    known = licence in HUB_LICENCES
    locked = {"test folder": "test", "val folder": "validation"}.get(record.data.locked)
    results = [
        EvalResult(
            task_type="image-classification", task_name="Image classification",
            dataset_type="imagefolder" if "folder" in record.data.layout.split(":")[0] else "custom",
            dataset_name=_data_name(record), dataset_split=locked,
            metric_type=kind, metric_name=f"{name} (95%: {100 * e.low:.1f} to {100 * e.high:.1f})",
            metric_value=round(e.value, 4),
        )
        for kind, name, e in _measures(record.metrics)
    ]  # fmt: skip
    origin = record.backbone.origin
    data = ModelCardData(
        license=licence if known else "other",
        license_name=None if known else licence,
        library_name="topwork",
        pipeline_tag="image-classification",
        tags=["topwork", "transfer-learning"],
        base_model=origin.removeprefix(HUB) if origin.startswith(HUB) else None,
        metrics=["f1" if record.metrics.multi_label else "accuracy"],
        model_name=record.name,
        eval_results=results,
        classes=[c.name for c in record.data.classes],
    )
    plain = data.to_dict()  # type: ignore[no-untyped-call]
    # A line break of another alphabet would come back as a space, unless it is written by its number.
    readable = "".join((record.name, results[0].dataset_name, *plain["classes"])).isprintable()
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=readable)).strip()


def escaped(name: str) -> str:
    """A name as Markdown shows it letter by letter, on one line, also inside a table."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(SIGNS, lambda m: f"\\{m[0]}", line)


SIGNS = r"[\\`*\[\]|~$!#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=[Ww]{3})\."
"""What Markdown would read as its own: its signs, `_` but for that inside a word, and what begins an address."""

Lines = Iterator[list[str]]
"""Blocks of Markdown: lines of one paragraph, list or table each."""


def _head(r: RunRecord) -> Lines:
    m, names = r.metrics, [escaped(c.name) for c in r.data.classes]
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    gives = "those that it has (any number, or none)" if m.multi_label else "one"
    yield [f"# {escaped(r.name) or 'An image classifier'}"]
    yield [f"Looks at a picture and gives it, of {len(names)} classes, {gives}: {listed}."]
    if m.multi_label is not None:
        yield [
            f"Mean average precision {_interval(m.multi_label.mean_average_precision)}, F1 (micro)"
            f" {_interval(m.multi_label.micro_f1)}, {_on(r)}."
        ]
    else:
        unseen = (
            "images, each judged by a model that had not seen it"
            if r.data.locked == "out-of-sample"
            else f"images of the {r.data.locked}, which it had not seen"
        )
        yield [f"Right on {_interval(m.accuracy)} of {m.accuracy.n:,} {unseen}."]
    yield [
        f"Made with topwork {r.topwork} on {r.created[:10]}: the first layers of a pretrained network, and a linear"
        " layer on what they see."
    ]


def _use(r: RunRecord) -> Lines:
    given = "answer.labels" if r.metrics.multi_label else "answer.label, answer.probability"
    yield ["## Use"]
    yield ["With topwork (`pip install topwork`), this folder being `model/`:"]
    yield ["```console", "$ topwork predict model/ photo.jpg", "$ topwork predict model/ photos/ --csv", "```"]
    yield [
        "```python", "import topwork", "", 'model = topwork.load("model/")',
        'for answer in model.predict(["photo.jpg"]):',
        f"    print({given})", "```",
    ]  # fmt: skip
    p = r.backbone.preprocessing
    how = "both sides are resized" if p.squash else "the shorter side is resized"
    if r.onnx is not None and r.onnx.bytes:
        yield ["`model.onnx` is the same model as one graph, which needs no PyTorch."]
    yield [
        f"Pictures of any size and usual format are taken as they are: {how} to {p.resize_px} px, and the middle"
        f" {p.crop_px} x {p.crop_px} px are looked at. `model.json` holds all that preparing a picture and reading the"
        " scores needs. Nothing here is pickled."
    ]


def _data(r: RunRecord) -> Lines:
    d = r.data
    yield ["## Data"]
    total = {part: sum(getattr(c, part) for c in d.classes) for part in ("train", "val", "test")}
    parts = [part for part in total if total[part] or part == "train"]
    images = r.groups.images if r.groups else sum(total.values())
    yield [f"{images:,} usable images in {len(d.classes)} classes ({escaped(_data_name(r))}), labelled by the user."]
    titles = {"train": "learnt from", "val": "validation", "test": "locked"}
    shown = sorted(d.classes, key=lambda c: c.train)[:SHOWN_CLASSES]
    yield _table(
        ("class", *(titles[p] for p in parts)),
        [(escaped(c.name), *(f"{getattr(c, p):,}" for p in parts)) for c in d.classes if c in shown],
    )
    if len(d.classes) > SHOWN_CLASSES:
        yield [f"These are the {SHOWN_CLASSES} classes of fewest images."]
    yield [f"{_split(r)} Fingerprint of contents, labels and parts: `{d.fingerprint}`."]
    faults = Counter(f.kind for f in d.faults)
    if faults:
        counts = ", ".join(f"{n:,} {escaped(kind)}" for kind, n in faults.most_common())
        yield [f"Left out as unusable or as no images: {len(d.faults):,} ({counts})."]
    if d.findings:
        yield ["Found in the images that are used:"]
        yield [f"- {f.severity}, {escaped(f.kind)}: {escaped(f.detail)}" for f in d.findings]
    if r.unknown is not None:
        yield [
            "`known.safetensors` holds what some of the images look like to the model, as a few hundred numbers each:"
            " no pixels, no names of files."
        ]
    if r.groups is not None and r.groups.together:
        g = r.groups
        own = ", but for the user's own split" if g.across else ""
        yield [
            f"{g.together:,} of {g.images:,} images belong together with another (copies, given groups,"
            f" near-duplicates, photos of one scene) and were kept on one side{own}."
        ]


def _split(r: RunRecord) -> str:
    if r.data.locked == "out-of-sample":
        return (
            "No images were set aside: the model is learnt from all of them, and judged on each by models that had not"
            f" seen it (seed {r.data.seed})."
        )
    given = "drawn by chance" if r.data.locked == "held-out part" else "given by the user"
    return f"The locked part ({r.data.locked}, {given}; seed {r.data.seed}) was read by the result alone."


def _result(r: RunRecord) -> Lines:
    m = r.metrics
    yield ["## Results"]
    how = (
        "Out of sample: each image was judged by a model that had not seen it."
        if r.data.locked == "out-of-sample"
        else f"On the {r.data.locked}, which nothing was learnt from or chosen by."
    )
    yield [f"{how} Brackets hold 95% intervals."]
    calibration = f"{100 * m.calibration_error:.1f} points" + (
        f" ({100 * m.calibration_low:.1f} to {100 * m.calibration_high:.1f})"
        if m.calibration_low is not None and m.calibration_high is not None
        else ""
    )
    rows = [(name, _estimate(e)) for _, name, e in _measures(m)]
    if m.multi_label is not None:
        rows += [
            ("Label-ranking average precision", _estimate(m.accuracy)),
            ("All labels right", _estimate(m.multi_label.subset_accuracy)),
        ]
    yield _table(("measure", "value"), [*rows, ("Log-loss", f"{m.log_loss:.3f}"), ("Calibration error", calibration)])
    off = m.naive_accuracy - m.accuracy.value
    if off >= 0.0005:  # half of what is printed
        yield [f"{100 * off:.1f} points are taken off for having chosen among several by the same images."]
    if m.multi_label is not None:
        yield from _labels(m, m.multi_label)
    else:
        yield from _classes(m)
    if m.reliability:
        yield ["How often answers of about the same probability are right:"]
        yield _table(
            ("probability", "right", "95%", "images"),
            [
                (f"{b.probability:.0%}", f"{b.right:.0%}", f"{100 * b.low:.0f} to {100 * b.high:.0f}", f"{b.n:,}")
                for b in m.reliability
            ],
        )


def _classes(m: Metrics) -> Lines:
    shown = _least([c.recall if c.n else 2.0 for c in m.per_class])
    yield _table(
        ("class", "images", "recall", "95%", "precision", "F1"),
        [
            (
                escaped(c.name), f"{c.n:,}", *_recall(c), "-" if c.precision is None else f"{c.precision:.0%}",
                f"{c.f1:.0%}" if c.n else "-",
            )
            for c in (m.per_class[i] for i in shown)
        ],
    )  # fmt: skip
    if len(shown) < len(m.per_class):
        yield [f"These are the {SHOWN_CLASSES} classes of lowest recall."]
    weak = sorted((c for c in m.per_class if c.n and c.recall < 1), key=lambda c: c.recall)[:SHOWN_WEAK]
    if weak:
        found = ", ".join(f"{escaped(c.name)} ({c.recall:.0%} of {c.n:,})" for c in weak)
        yield [f"Found least often: {found}."]
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(m.confusion) for j, n in enumerate(row) if i != j and n),
        key=lambda p: (-p[0], p[1], p[2]),
    )[:SHOWN_PAIRS]
    if pairs:
        yield ["Commonest mistakes:"]
        yield [
            f"- {n:,} of {m.per_class[i].n:,} of {escaped(m.per_class[i].name)} taken for"
            f" {escaped(m.per_class[j].name)}"
            for n, i, j in pairs
        ]


def _labels(m: Metrics, several: MultiLabelMetrics) -> Lines:
    shown = _least([2.0 if x.average_precision is None else x.average_precision for x in several.per_label])
    yield _table(
        ("label", "images", "average precision", "recall", "95%", "precision", "F1", "given from"),
        [
            (
                escaped(c.name), f"{c.n:,}", _precision(x), *_recall(c),
                "-" if c.precision is None else f"{c.precision:.0%}", f"{c.f1:.0%}" if c.n else "-",
                f"{x.threshold:.0%}",
            )
            for c, x in ((m.per_class[i], several.per_label[i]) for i in shown)
        ],
    )  # fmt: skip
    yield ["Given from: the probability from which on the model gives the label."]
    if len(shown) < len(several.per_label):
        yield [f"These are the {SHOWN_CLASSES} labels of lowest average precision."]


def _beyond(r: RunRecord) -> Lines:
    """What the model says beyond its class, where the record has it."""
    u, s = r.unknown, r.sets
    if u is not None:
        yield ["## Pictures of none of the classes"]
        yield [
            f"A score ({escaped(u.method)}) says how unlike a picture is to those learnt from; above {u.threshold:.4g}"
            f" it is taken for none of the classes. That was set so as to befall {u.false_alarm:.0%} of the pictures"
            f" that are of one; of judged ones it befell {_estimate(u.measured)}. How many strange pictures are told"
            " depends on how strange they are: try some of yours. In Python: `answer.unknown`."
        ]
    if s is not None and s.coverage:
        yield ["## Prediction sets"]
        yield [
            "Instead of one class, all that it may be, so that the share asked for is right: `topwork predict ..."
            f" --sets {s.coverage[-1].level:g}`. On {s.n:,} images:"
        ]
        yield _table(
            ("asked for", "class is in the set", "classes in a set"),
            [(f"{c.level:.0%}", _estimate(c.covered), f"{c.size:.2f}") for c in s.coverage],
        )


def _limits(r: RunRecord) -> Lines:
    m = r.metrics
    yield ["## Limits"]
    found = [
        f"All numbers are of images from the collection that it was learnt from, {_on(r)}. Other cameras, places, times"
        " and ways to take pictures were not tried; expect less there, and measure: `topwork evaluate`.",
        "Whether it is right equally often for people, places or things that the labels do not tell apart was not"
        " measured.",
    ]
    if m.multi_label is None and r.unknown is None:
        found.append("It gives one of its classes to any picture, whatever that shows.")
    few = [escaped(c.name) for c in m.per_class if c.n < FEW]
    if few:
        more = f" and {len(few) - LISTED} more" if len(few) > LISTED else ""
        found.append(
            f"Judged on fewer than {FEW} images each, so hardly known: {', '.join(few[:LISTED])}{more}."
        )  # fmt: skip
    found += [f"Shortcut? {escaped(s.detail)}" for s in r.shortcuts if s.warned]
    if r.shortcuts and not any(s.warned for s in r.shortcuts):
        kinds = ", ".join(escaped(s.kind) for s in r.shortcuts)
        found.append(f"Looked for shortcuts by {kinds}: none explains much of what it knows. There are others.")
    if r.suspects is not None and r.suspects.estimated:
        s = r.suspects
        found.append(
            f"Of {s.images:,} labels, {s.wrong:,} {'looks' if s.wrong == 1 else 'look'} wrong and {s.estimated:,}"
            f" {'is' if s.estimated == 1 else 'are'} doubtful. They were used as they are."
        )
    if r.groups is not None and r.groups.across:
        found.append(
            f"{r.groups.across:,} images that were learnt from show a scene of the part that it was judged on: the"
            " result may be too good."
        )
    if r.growth is not None:
        found.append(f"More images: {escaped(r.growth.reason)}")
    if not r.plan.decided:
        found.append("The images could not tell for certain where to cut the network: another cut may be as good.")
    yield [f"- {line}" for line in found]


def _licences(r: RunRecord) -> Lines:
    b = r.backbone
    stated = "not stated by the publisher" if b.licence is None else escaped(b.licence)
    # A file of the user's is no business of whoever gets the model.
    where = f", from {escaped(b.origin)}" if b.origin.startswith((HUB, "http", "package ")) else ""
    yield ["## Licences"]
    yield [
        f"- Weights of the backbone ({escaped(b.weights)}{where}): {stated}. The kept layers are taken from them"
        + (", and trained further." if r.plan.recipe else " unchanged."),
        "- Images that it was learnt from, and their labels: unknown to topwork. Ask whoever made this model.",
        "- The licence in the metadata is that of the backbone's weights. What holds for the model as a whole is for"
        " its maker to say.",
        "- topwork itself: Apache-2.0.",
    ]


def _made(r: RunRecord) -> Lines:
    b, plan, size, spent = r.backbone, r.plan, r.model, r.spending
    yield ["## How it was made"]
    recipe = plan.recipe
    trained = (
        "none: they stay as they were learnt"
        if recipe is None
        else f"{recipe.strategy}, from {escaped(recipe.unfreeze)} on: {recipe.epochs} epochs, AdamW at {recipe.lr:g},"
        f" {recipe.decay:g} times that per stage towards the input, batches of {recipe.batch}"
    )
    yield _table(
        ("what", "how"),
        [
            ("Backbone", f"{escaped(b.name)} ({escaped(b.weights)}), fingerprint `{b.fingerprint}`"),
            ("Input", f"{plan.size_px} px"),
            ("Cut after", f"{escaped(plan.cut)}: {plan.kept_cost:.0%} of the backbone's forward time"),
            ("Training of kept layers", trained),
            ("Head", escaped("trained together with them" if recipe else r.head.reason)),
            ("Seed", str(r.options.seed)),
            ("Parameters", f"{size.params:,} of the backbone's {size.whole_params:,}; {size.file_bytes / 1e6:.1f} MB"),
            ("One image", f"{size.latency_ms:.1f} ms on a CPU of the machine that made it"),
            ("Making it took", f"{spent.total_seconds:.0f} s, {spent.cost_fe:.1f} times one pass of the images through"
             " the backbone"),
            ("Versions", escaped(", ".join(f"{k} {v}" for k, v in {"topwork": r.topwork, **r.versions}.items()))),
        ],
    )  # fmt: skip
    if plan.reasons:
        yield ["Why so:"]
        yield [f"- {escaped(reason)}" for reason in plan.reasons]


def _measures(m: Metrics) -> list[tuple[str, str, Estimate]]:
    """What the hub shows: the hub's name, ours, the value."""
    if m.multi_label is not None:
        several = m.multi_label
        return [
            ("mean_average_precision", "Mean average precision", several.mean_average_precision),
            ("f1", "F1 (micro)", several.micro_f1), ("f1", "F1 (macro)", several.macro_f1),
        ]  # fmt: skip
    return [
        ("accuracy", "Accuracy", m.accuracy), ("balanced_accuracy", "Balanced accuracy", m.balanced_accuracy)
    ]  # fmt: skip


def _on(r: RunRecord) -> str:
    """What the result was measured on."""
    n = f"{r.metrics.accuracy.n:,} images"
    if r.data.locked == "out-of-sample":
        return f"out of sample over {n}"
    return f"on {n} of the {r.data.locked}"


def _data_name(r: RunRecord) -> str:
    """The last part of where the images lay: the rest is nobody else's business."""
    return PurePosixPath(r.data.root.replace("\\", "/").partition("#")[0]).name or "images"


def _licence(b: BackboneFacts) -> str:
    return (b.licence or "unknown").lower()


def _least(values: Sequence[float]) -> list[int]:
    """Which rows are shown: all, in their order, or the least ones, the least first."""
    if len(values) <= SHOWN_CLASSES:
        return list(range(len(values)))
    return sorted(range(len(values)), key=lambda i: values[i])[:SHOWN_CLASSES]


def _recall(c: ClassMetrics) -> tuple[str, str]:
    return (f"{c.recall:.0%}", f"{100 * c.recall_low:.0f} to {100 * c.recall_high:.0f}") if c.n else ("-", "-")


def _precision(x: LabelMetrics) -> str:
    return "-" if x.average_precision is None else f"{x.average_precision:.0%}"


def _estimate(e: Estimate) -> str:
    return f"{e.value:.1%} ({100 * e.low:.1f} to {100 * e.high:.1f})"


def _interval(e: Estimate) -> str:
    return f"{e.value:.1%} (95% interval: {100 * e.low:.1f} to {100 * e.high:.1f})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
