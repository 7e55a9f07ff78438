"""What are the facts that pass from room to room, and into run.json?

Frozen dataclasses of plain values: no torch, no numpy, no behaviour beyond trivial arithmetic.
`encode` and `decode` are the only way to and from JSON; decoding validates types and names the field.
Field by field: docs/run-json.md (a test holds the two together).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec

from topwork.errors import DataError

SCHEMA = 1
"""Version of run.json and model.json; a reader refuses a higher one."""

Part = Literal["train", "val", "test"]
Strategy = Literal["head", "suffix", "full", "surgical"]
Severity = Literal["fault", "warning", "note"]
Verdict = Literal["similar", "in between", "different", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the network expects of its pixels. Sizes in px; mean and std per RGB channel on 0..1."""

    resize_px: int
    crop_px: int
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False  # both sides resized to resize_px; else the shorter one

    def at(self, crop_px: int) -> Preprocessing:
        """The same preprocessing at another input size, with the margin around the crop in proportion."""
        return replace(self, crop_px=crop_px, resize_px=round(self.resize_px * crop_px / self.crop_px))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How the views that training sees differ from the plain one."""

    least_area: float = 0.35  # share of the image that a crop keeps; ImageNet's 0.08 loses the object on small sets
    stretch: float = 4 / 3  # proportions are changed by at most this factor, as in torchvision and timm
    flip: bool = True  # left and right; false where it changes the label (digits, spectrograms, text)
    colour: float = 0.2  # brightness, contrast and saturation are changed by at most this share


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the kept layers are trained. Each default's reason stands beside it."""

    strategy: Strategy
    cut: str
    unfreeze: str  # the first trained block; everything before it is frozen and not in the training graph
    lr: float = 1e-3  # of the last stage and the head; AdamW steps are about this large, whatever the gradient
    epochs: int = 15
    decay: float = 0.7  # learning rate of each stage over that of the stage after it, from head to stem
    batch: int = 32  # images per step: small sets need the steps
    weight_decay: float = 0.02  # decoupled; not on biases and normalisation, as everywhere since BiT
    smoothing: float = 0.1  # of the labels: a few hundred images are otherwise learnt by heart
    warm_up: float = 0.1  # share of the steps in which the rate rises linearly; then it falls by a cosine to 0
    average: float = 0.5  # epochs over which the weights are averaged (EMA): the last steps' noise goes
    clip: float = 1.0  # norm that the whole gradient is held to: one odd batch must not undo the start
    views: int = (
        3  # augmented views per image, one an epoch, round and round; the search takes more where they are cheap
    )
    balance: bool = False  # classes weigh alike, however many images they have


@dataclass(frozen=True, slots=True)
class Fault:
    """One file (or folder) that is left out, and why. `path` is relative to the data's root."""

    path: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about images that can be used which makes a worse model, or a result that is too good."""

    kind: str
    severity: Severity  # "fault": wrong whatever the task; "warning": probably; "note": worth knowing
    detail: str
    paths: tuple[str, ...]  # relative to the data's root; empty where it is about classes


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a usable file says of itself. Sizes in pixels, as stored (before orientation)."""

    format: str
    mode: str
    width_px: int
    height_px: int
    bytes: int = 0
    frames: int = 1  # pictures in the file (animation, pages); the first one counts
    taken: str = ""  # EXIF time of capture, ISO 8601 without a zone; "" where it is not stated
    camera: str = ""  # EXIF make and model; "" where they are not stated


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image: path relative to the root, index of its class, part, content digest."""

    path: str
    label: int  # where an image may have several: the rarest of them, by which it is stratified; C where it has none
    part: Part
    digest: str
    group: str = ""  # given by the user (patient, burst): images of one are never on two sides; "": none was
    labels: tuple[int, ...] = ()  # all of them, rising, where an image may have several (Dataset.multi_label)
    facts: FileFacts | None = None  # what its file says of itself
    scene: str = ""  # found by looks: images of one belong together like those of one group; "": alone


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every usable image under one root. `classes` is the order of the labels, stored in the model."""

    root: str
    layout: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    multi_label: bool = False  # an image may have several labels, or none
    findings: tuple[Finding, ...] = ()  # what is wrong with the examples, most severe first

    def part(self, *parts: Part) -> tuple[Example, ...]:
        """The examples of the given parts, in order."""
        return tuple(e for e in self.examples if e.part in parts)

    def labels_of(self, example: Example) -> tuple[int, ...]:
        """All labels of one of its examples: one, or several or none where an image may have several."""
        return example.labels if self.multi_label else (example.label,)


@dataclass(frozen=True, slots=True)
class GroupCount:
    """Links of one kind between images that belong together."""

    kind: str  # "copy", "given", "near-duplicate" or "burst"
    links: int
    images: int  # that have such a link
    examples: tuple[tuple[str, str], ...]  # a few pairs of paths


@dataclass(frozen=True, slots=True)
class Grouped:
    """Which images belong together, and what difference it makes."""

    images: int
    groups: int  # an image alone is one, too
    together: int  # images that are not alone
    counts: tuple[GroupCount, ...]
    largest: tuple[tuple[str, ...], ...]  # a few paths of each of the largest groups
    sizes: tuple[int, ...]  # of these, in images
    limit: float  # distance, over that to other images of the class, up to which two are one scene; 0: not looked for
    limit_in_order: float  # the same for neighbours by name or capture time; 0: the order says nothing
    moved: int = 0  # images that changed sides so that their group stands on one side
    left_out: int = 0  # images that were left out of training, since they look like some of a test folder
    across: int = 0  # training images that show a scene of the user's own test folder, and stay
    cut: str = ""  # at which the two accuracies were measured; "" where bursts and near-duplicates make no difference
    accuracy_apart: float | None = None  # leave-group-out: what to expect on new scenes
    accuracy_mixed: float | None = None  # leave-one-out, as if photos of one scene might stand on both sides
    inflation: float | None = None  # the second minus the first, on the same images, with its 95% interval
    inflation_low: float | None = None
    inflation_high: float | None = None


@dataclass(frozen=True, slots=True)
class ClassCount:
    """Usable images of one class per part."""

    name: str
    train: int
    val: int
    test: int


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What came in, as run.json keeps it."""

    root: str
    layout: str
    classes: tuple[ClassCount, ...]
    faults: tuple[Fault, ...]
    locked: str  # what the result is measured on: "test folder", "val folder", "held-out part" or "out-of-sample"
    seed: int
    fingerprint: str  # digest over all contents, labels and parts
    findings: tuple[Finding, ...] = ()  # what is wrong with images that are used, most severe first


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where one tensor carries everything onward. Sizes are per image at the backbone's input."""

    name: str
    channels: int
    height: int
    width: int
    params: int  # of the kept layers, up to and including this cut
    macs: int  # multiply-adds of the kept layers


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """Which pretrained network, with which weights, where it can be cut."""

    name: str
    weights: str
    fingerprint: str
    preprocessing: Preprocessing
    params: int
    macs: int
    source_classes: int  # 0 where the weights came without the classifier
    cuts: tuple[Cut, ...]
    licence: str | None = None  # of the weights, as the library states it; None where it states none
    origin: str = ""  # where the weights come from: an address, a package, a repository, a file


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share in 0..1 with its 95% interval, the images behind it, and what it was measured on."""

    value: float
    low: float
    high: float
    n: int
    on: str


@dataclass(frozen=True, slots=True)
class CutScore:
    """What was measured at one cut. Accuracies are leave-one-out (method: docs/method.md)."""

    cut: str
    cost_share: float  # measured seconds of the kept layers over those of the whole backbone, 0..1
    cost_ms: float  # measured forward time of the kept layers for one image
    accuracy: float
    low: float
    high: float
    deficit: float  # accuracy of the best place (of all backbones) minus this one's, on the same images
    deficit_low: float
    deficit_high: float
    dims: int
    ridge: float  # the ridge penalty chosen, as a multiple of trace(X'X) / d
    images: int  # that it was scored on: a sample, where the others were not passed up to this cut


Fate = Literal["chosen", "measured", "stopped", "left out"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of one backbone that was asked for, at one input size."""

    backbone: str
    size_px: int  # 0 where it could not even be found out
    fate: Fate
    reason: str
    top1: float | None  # on ImageNet, 0..1, as its publisher states it for these weights
    n: int  # images that it was judged on; 0 where it was left out
    forward_ms: float | None  # of the whole backbone for one image; predicted where it was left out for its cost
    facts: BackboneFacts | None  # None where it could not be loaded or cut
    scores: tuple[CutScore, ...]  # its depth table; empty where it was left out

    @property
    def best(self) -> CutScore | None:
        """Its most accurate cut of those that were scored on most images, the first of equals."""
        return max(self.scores, key=lambda s: (s.images, s.accuracy), default=None)


@dataclass(frozen=True, slots=True)
class Similarity:
    """How near the new task is to what the backbone was trained for, and the evidence."""

    verdict: Verdict
    reason: str
    early_cut: str  # the best one with at most a third of the multiply-adds
    early_accuracy: float
    best_accuracy: float
    last_accuracy: float
    deep_gain: float | None  # share of the early cut's errors that the last cut removes; None where there are none
    last_deficit: float  # of the last cut to the best, with its 95% interval
    last_deficit_low: float
    last_deficit_high: float
    neighbour_accuracy: float  # leave-one-out k-nearest-neighbour at the last cut
    source_confidence: float | None  # mean top probability among the backbone's own classes
    source_spread: float | None  # effective number of its classes in use, over their number


@dataclass(frozen=True, slots=True)
class Plan:
    """What should be done, and why, in words."""

    backbone: str
    size_px: int  # of its input
    cut: str
    best_backbone: str  # the backbone, its input size and the cut that were most accurate, frozen
    best_size_px: int
    best_cut: str
    strategy: Strategy
    recipe: Recipe | None  # how the kept layers were trained; None where they stay as they were learnt
    delta: float  # accuracy that a cheaper cut may cost, 0..1
    decided: bool
    more_images: int | None  # about how many more labelled images would decide; None where decided
    kept_cost: float  # share of the backbone's forward time, 0..1
    cost_ms: float  # measured forward time of the kept layers for one image
    similarity: Similarity
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a candidate on all folds but one, judged on that one."""

    backbone: str
    size_px: int
    recipe: Recipe
    rung: str  # "short", "long" or "test"
    fold: int
    n: int  # images that it was judged on
    accuracy: float
    log_loss: float | None  # at the temperature that suits it best; None where the training diverged
    head_accuracy: float  # of the frozen model's head on the same images
    seconds: float
    losses: tuple[float, ...]  # mean training loss of each epoch


@dataclass(frozen=True, slots=True)
class Tuning:
    """Whether training the kept layers is worth it: what was tried, what it cost, what was decided and why."""

    budget_seconds: float
    spent_seconds: float
    trials: tuple[Trial, ...]
    backbone: str  # whose layers the recipe is for
    size_px: int
    recipe: Recipe | None  # of the candidate that came furthest
    gain: float | None  # its accuracy minus the frozen model's, on images that chose neither
    gain_low: float | None  # lower 90% bound (one-sided) of the gain
    n: int  # images that the gain was measured on
    replaced: bool  # whether the trained model replaces the frozen one
    reason: str


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """Which linear head was fitted, and what it was weighed against on the same folds."""

    kind: Literal["ridge", "logistic", "several depths"]
    penalty: float
    temperature: float
    ridge_accuracy: float  # out of fold
    logistic_accuracy: float | None  # out of fold; None where it was not tried
    reason: str


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: recall and precision with 95% intervals, F1; `n` true images, `predicted` given to it."""

    name: str
    n: int
    predicted: int
    recall: float
    recall_low: float
    recall_high: float
    precision: float | None  # None where nothing was given to the class
    f1: float
    precision_low: float | None = None  # None where nothing was given to it; and in runs of an earlier topwork
    precision_high: float | None = None


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """How well one of several labels is found. Recall, precision and F1 stand in ClassMetrics."""

    name: str
    average_precision: float | None  # None where no image has it
    average_precision_low: float | None
    average_precision_high: float | None
    threshold: float  # probability from which on the model gives the label, 0..1
    calibration_error: float


@dataclass(frozen=True, slots=True)
class MultiLabelMetrics:
    """How good a model is whose images may have several labels. F1 is of decisions by thresholds that they were not
    chosen by."""

    mean_average_precision: Estimate  # over the labels that occur
    micro_f1: Estimate  # over all answers
    macro_f1: Estimate  # mean over the labels that occur
    subset_accuracy: Estimate  # share of images that were given exactly their labels
    labels_per_image: float
    without_label: int  # images
    per_label: tuple[LabelMetrics, ...]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of about the same probability: how often are they right?"""

    probability: float  # that they were given, on average
    right: float  # share of them that is right, with its 95% interval
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Prediction sets at one level, on images that did not set them."""

    level: float  # share of images whose class should be in the set, 0..1
    covered: Estimate  # share whose class is
    size: float  # classes in a set, on average


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good the model is. confusion[true][predicted] counts images.

    Where images may have several labels, accuracy is label-ranking average precision, balanced accuracy the mean over
    the labels of their average precisions, log-loss and calibration error means over the labels; there is no confusion.
    """

    accuracy: Estimate
    balanced_accuracy: Estimate
    naive_accuracy: float  # before the correction for picking the best of many
    log_loss: float
    calibration_error: float  # expected calibration error, 15 bins of equal count, less what chance alone would show
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    multi_label: MultiLabelMetrics | None = None  # None where an image has one label
    calibration_low: float | None = None  # 95% interval of the calibration error
    calibration_high: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()  # rising; of the top answer; empty where there may be several labels
    unknown: Estimate | None = None  # by `topwork evaluate`: share of images that is taken for none of the classes
    coverage: tuple[Coverage, ...] = ()  # by `topwork evaluate`: how often prediction sets hold; of a run: `sets`


@dataclass(frozen=True, slots=True)
class Unknown:
    """How images of none of the classes are told: by a score that rises the less an image is like those learnt from."""

    method: str  # what the score is: "distance", from the middle of the training images, of which it is about 1
    false_alarm: float  # share of images of the classes that may be taken for none of them, as asked for
    threshold: float  # score above which an image is taken for none of them
    quantiles: tuple[float, ...]  # score that 0%, 1%, ... 100% of images of the classes stay at or below
    n: int  # images out of sample behind them; those that belong together count as one
    measured: Estimate  # share of judged images that is above a threshold which they did not set


@dataclass(frozen=True, slots=True)
class Sets:
    """What prediction sets rest on: how little probability the true class of an image outside the training had.

    A set holds every class whose 1 - probability is up to the quantile of its level, and the likeliest one.
    """

    quantiles: tuple[float, ...]  # what 1 - probability of the true class stays up to at 0%, 1%, ... 100%; 1, all
    # classes, where the images are too few to promise less
    n: int  # images out of sample behind them; those that belong together count as one
    coverage: tuple[Coverage, ...]


@dataclass(frozen=True, slots=True)
class Spending:
    """Where the time went. Seconds of wall clock; 1 FE = decoding plus one forward pass of everything."""

    seconds: dict[str, float]
    total_seconds: float
    fe_seconds: float
    cost_fe: float
    images_passed: int  # images that went through the backbone in this run; the rest came from the cache
    cache_bytes_per_image: int


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a saved model takes, beside the backbone that it was cut from. Latencies are of one image, on the CPU."""

    params: int  # of the kept layers and the head
    whole_params: int  # of the whole backbone
    file_bytes: int  # of model.safetensors
    latency_ms: float  # from pixels to scores: kept layers and head
    whole_latency_ms: float  # from pixels to the old task's scores: the whole backbone


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table count. None (of labels: none): guessed, and then said."""

    image: str | None = None  # of paths or bytes
    labels: tuple[str, ...] = ()  # one; or several, each a class, with 0 or 1 in it
    split: str | None = None
    group: str | None = None
    separator: str | None = None  # between several labels in one cell


@dataclass(frozen=True, slots=True)
class Options:
    """What a fit was asked for. None: measured, or the backbone's own."""

    folder: str
    backbones: tuple[str, ...]
    weights: str | None = None
    sizes: tuple[int | Literal["auto"], ...] = ()  # px; none: each backbone's own
    strategy: Literal["auto"] | Strategy = "auto"
    cut: str | None = None
    unfreeze: str | None = None
    lr: float | None = None
    epochs: int | None = None
    flip: bool = True
    balance: bool = False
    several_depths: bool = True
    budget: str | None = None  # seconds as a number, or such as 90s, 10m, 1h, 40fe
    delta: float = 0.01
    seed: int = 0
    cache: str | None = None
    bursts: bool = True  # photos of one scene are found and kept on one side
    split_of: str | None = None  # an earlier run, whose parts and groups are taken
    columns: Columns = field(default_factory=Columns)
    pictures: bool = True  # what is worth seeing is looked at once more, and the run's page is drawn


@dataclass(frozen=True, slots=True)
class EngineTry:
    """What a runtime was worth in the race for the frozen layers."""

    name: str
    set_up_s: float  # seconds until its first answer was there; expected ones where it was not tried
    ms_per_image: float | None  # in one lane; None where it was not tried, or failed
    difference: float | None  # to plain PyTorch: the largest at any cut, over the largest magnitude there
    outcome: str  # "reference", "faster", "slower than ...", "differs: ...", "failed: ...", "not tried: ..."


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the frozen layers ran in, and how it was chosen."""

    name: str  # of the winner
    device: str
    lanes: int  # batches computed at once
    threads: int  # of each
    tried: tuple[EngineTry, ...]  # plain PyTorch first; empty where the images were too few for a race

    @property
    def faster(self) -> float:
        """Plain PyTorch's time over the winner's; 1 where there was no race."""
        ms = {t.name: t.ms_per_image for t in self.tried}
        own = ms.get(self.name)
        reference = self.tried[0].ms_per_image if self.tried else None
        return reference / own if own and reference else 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label is probably wrong. Probabilities are out of sample, means over all voters."""

    path: str
    label: str  # as it was given
    likely: str  # the class that the voters take it for
    confidence: float  # probability of that class
    label_probability: float  # probability of the label


@dataclass(frozen=True, slots=True)
class Suspects:
    """Which labels are probably wrong, the most suspicious first."""

    images: int  # whose labels were looked at
    voters: int  # cuts that are not shown to be worse than the best one, and the head
    estimated: int  # labels that are about as many as are wrong, by confident learning; hard images count, too
    wrong: int  # of these, the first ones of the list, that hardly anything speaks for
    listed: tuple[Suspect, ...]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well something trivial tells the classes apart. Accuracies are balanced, out of sample, on the same images.

    The network "knows" what its best cut is right on beyond one class for all.
    """

    kind: str  # "size and format", "file size", "camera", "colour" or "first layers"
    accuracy: float
    low: float  # 95% interval
    high: float
    majority: float  # of always answering one class: 1 / number of classes
    best: float  # of the most accurate cut
    share: float  # of what the network knows, that this alone reaches
    share_low: float  # lower 95% bound
    warned: bool  # the model may be learning this
    detail: str  # in a sentence, with the evidence


@dataclass(frozen=True, slots=True)
class GrowthPoint:
    """Accuracy out of sample at one number of training images."""

    images: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Growth:
    """What more images would bring: accuracy a - b n^-c of a head on the chosen cut. Gains with 95% intervals."""

    images: int
    points: tuple[GrowthPoint, ...]  # as measured, from few images to all
    a: float
    b: float
    c: float
    twice: float  # accuracy that twice the images would add
    twice_low: float
    twice_high: float
    four_times: float
    four_times_low: float
    four_times_high: float
    tells: bool  # whether the interval is narrow enough to say more than "more images may help"
    reason: str  # in a sentence


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """model.onnx: the model as a graph for other runtimes, compared with PyTorch on real images."""

    bytes: int  # of the file; 0 where there is none
    opset: int  # version of ONNX's operations
    images: int  # on which it was compared
    difference: float | None  # the largest of a score to PyTorch's; None where it could not be compared
    largest: float | None  # the largest score, either sign
    seconds: float  # that writing and comparing took
    reason: str  # why there is no file; empty where there is one


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how it compares with the model in PyTorch."""

    file: str
    to: str
    bytes: int
    images: int  # that it was compared on; 0 where this machine cannot run it
    difference: float | None  # the largest of a score to PyTorch's
    note: str = ""  # what else is to be known
    accuracy_change: float | None = None  # of int8: accuracy minus that of model.onnx on the same images, 95% interval
    change_low: float | None = None
    change_high: float | None = None
    agreement: float | None = None  # of int8: share of images that get the same answer
    faster: float | None = None  # of int8: time of model.onnx for an image over its own, here
    smaller: float | None = None  # of int8: size of model.onnx over its own


@dataclass(frozen=True, slots=True)
class RunRecord:
    """run.json: every fact of a run."""

    schema: int
    topwork: str
    created: str  # UTC, ISO 8601
    name: str
    options: Options
    data: DataFacts
    backbones: tuple[Standing, ...]  # the chosen one first, then by accuracy
    plan: Plan
    head: HeadFacts
    metrics: Metrics
    tuning: Tuning | None  # None where only a head was asked for, or is there so far
    model: ModelSize  # what the saved model takes
    spending: Spending
    engine: EngineFacts  # of the chosen backbone's pass
    versions: dict[str, str]
    warnings: tuple[str, ...]
    suspects: Suspects | None = None  # None where there are too few images, or several labels per image
    shortcuts: tuple[Shortcut, ...] = ()  # empty where an image may have several labels
    growth: Growth | None = None  # None where there are too few images, or several labels per image
    groups: Grouped | None = None  # which images belong together; None in runs of an earlier topwork
    unknown: Unknown | None = None  # how images of none of the classes are told; None where too few images tell
    sets: Sets | None = None  # None where an image may have several labels
    onnx: OnnxFacts | None = None  # the model as a graph; None in runs of an earlier topwork

    @property
    def backbone(self) -> BackboneFacts:
        """The chosen backbone."""
        facts = self.backbones[0].facts
        assert facts is not None, "what was chosen was measured"
        return facts

    @property
    def scores(self) -> tuple[CutScore, ...]:
        """The chosen backbone's depth table."""
        return self.backbones[0].scores


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """model.json: all that prediction needs besides the tensors."""

    schema: int
    topwork: str
    backbone: str
    fingerprint: str
    cut: str
    taps: tuple[str, ...]  # cuts whose pooled features the head reads, from the input on; the last one is `cut`
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    temperature: float
    channels: int  # of all taps together
    head: str
    kept_cost: float
    accuracy: Estimate
    versions: dict[str, str]
    multi_label: bool = False  # whether an image may have several labels: their probabilities are sigmoids
    thresholds: tuple[float, ...] = ()  # of several labels: probability from which on each is given
    unknown: Unknown | None = None  # how images of none of the classes are told
    sets: Sets | None = None  # what prediction sets rest on


@dataclass(frozen=True, slots=True)
class Compared:
    """One of several runs side by side. Its numbers are those of its own record."""

    name: str  # of its folder; where two have the same, the path as given
    run: str  # the path as given
    backbone: str
    size_px: int
    cut: str
    strategy: Strategy
    head: str  # kind, as in HeadFacts, or "trained" together with kept layers
    data: str  # where its images lay
    fingerprint: str  # of its images, labels and parts
    images: int  # usable ones, each counted once for each of its labels
    classes: int
    multi_label: bool
    accuracy: Estimate
    balanced_accuracy: Estimate
    log_loss: float
    calibration_error: float
    latency_ms: float  # of one image, where the run was made
    params: int
    file_bytes: int
    seconds: float  # that the run took
    cost_fe: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """A fact of which the runs have not all the same; a text for each of them."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassContrast:
    """How often a class is found by two runs, on the images of it that both are judged on."""

    name: str
    n: int
    reference: float  # recall
    other: float
    difference: float  # the second minus the first, with its own 95% interval
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image that two runs answer differently. Several labels are separated by |."""

    path: str  # in the reference's data
    label: str
    reference: str  # what it answers
    reference_probability: float | None  # None where several labels may be given
    other: str
    other_probability: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A run against the reference, on the images that both are judged on. What could not be compared is None."""

    name: str
    verdict: Literal["better", "worse", "cannot tell", "not compared"]
    reason: str  # in a sentence
    notes: tuple[str, ...]  # what to bear in mind, in sentences
    shared: int  # images
    reference: float | None  # accuracy on these
    other: float | None
    difference: float | None  # the second minus the first, with its interval
    low: float | None
    high: float | None
    only_reference: int  # images that it alone is right on, or more right where there may be several labels
    only_other: int
    more_images: int | None  # about how many more would tell; None where they do, or no realistic number would
    disagreed: int  # images that are answered differently, rightly or wrongly
    classes: tuple[ClassContrast, ...]  # those that differ most first
    disagreements: tuple[Disagreement, ...]  # as many as were asked for, the surest first


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side; the first one is the reference. The intervals of all pairs hold together with 95%."""

    runs: tuple[Compared, ...]
    same: tuple[Contrast, ...]  # facts that all runs have in common, with their one value
    differences: tuple[Contrast, ...]
    pairs: tuple[Pair, ...]


T = TypeVar("T")


def encode(record: Any) -> bytes:
    """JSON of a record or of plain values, indented, UTF-8, newline at the end. NaN becomes null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode(data: bytes, kind: type[T], *, where: str) -> T:
    """Read a record back; raises DataError naming the file and the field where it does not fit."""
    try:
        schema = msgspec.json.decode(data).get("schema", 0)
        if not isinstance(schema, int):
            raise DataError(f"{where}: not a {kind.__name__} file: schema is {schema!r}, expected a whole number")
        if schema > SCHEMA:
            raise DataError(
                f"{where}: written by a newer topwork (schema {schema}, this one reads up to {SCHEMA});"
                " upgrade with: pip install --upgrade topwork"
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not a {kind.__name__} file: {error}") from error
