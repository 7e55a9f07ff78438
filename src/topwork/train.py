"""How are the kept layers trained from the learnt weights?

The frozen prefix is not in the graph: training reads its cached output (activations.py). The trained
part starts from the learnt weights and the exact head on top of them (LP-FT: Kumar et al., ICLR 2022),
BatchNorm uses its stored statistics and learns its scale and shift, and learning rates fall from the
head to the stem. Everything is a function of the recipe, the rows and the seed, so that a training
that was interrupted ends as if it had not been.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from topwork import replay
from topwork.activations import Store
from topwork.engine import channels_last, device, exact_arithmetic, normalisation, pool
from topwork.feed import Feed
from topwork.head import Exact
from topwork.records import Cut, Recipe
from topwork.statistics import class_weights
from topwork.watch import SILENT, Watch
from topwork.zoo import Backbone

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHECKPOINT_S = 20.0
"""Seconds of training that an interruption may cost, at most; an epoch's end is always kept."""

_FORMAT = "1"


NARROW = 16
"""Input channels below which a 1x1 convolution is trained channels first: its gradient in the other layout writes
outside its memory where a vector register holds more numbers than that (8 with AVX2: torch 2.14.1, RepVGG's first block
of 3 channels at 64 px ended the process; 16 with AVX-512: torch 2.11, 8 and 12 channels, from two threads on)."""


@dataclass(frozen=True)
class Task:
    """What is to be learnt: images through their stored views, labels, and how much each class weighs."""

    store: Store
    labels: Ints  # (n,) of the store's images
    classes: int


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss, seconds of training (views not counted), and where it stood."""

    loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The outcome of one training."""

    network: Network  # with the averaged weights
    curve: tuple[Epoch, ...]
    view_seconds: float  # spent on views that were not there yet


class Network(nn.Module):
    """Trained part, pooling and head: activations at the unfreeze point to logits."""

    def __init__(self, backbone: Backbone, recipe: Recipe, start: Exact) -> None:
        super().__init__()
        self.point, end = backbone.index(recipe.unfreeze), backbone.index(recipe.cut)
        segments = [copy.deepcopy(s) for s in backbone.chain.segments[self.point : end + 1]]
        self.segments = nn.ModuleList(segments)
        self.head = nn.Linear(*start.weight.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(start.weight.T))
            self.head.bias.copy_(torch.from_numpy(start.bias))
        scale, shift = normalisation(backbone.preprocessing)
        self.mean, self.factor = nn.Buffer(torch.from_numpy(start.mean).float()), nn.Buffer(_inverse(start.scale))
        self.pixel_scale, self.pixel_shift = nn.Buffer(scale), nn.Buffer(shift)
        for segment in segments[1:] if recipe.strategy == "surgical" else []:
            segment.requires_grad_(False)
        channels_last(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels < NARROW and module.kernel_size == (1, 1):
                _keep_channels_first(module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Stored activations (b, h, w, c), float16 or, at the input, uint8, to logits (b, C)."""
        x = x.float()
        if self.point == 0:
            x = x * self.pixel_scale + self.pixel_shift
        x = x.permute(0, 3, 1, 2)
        for segment in self.segments:
            x = segment(x)
        logits: Tensor = self.head((pool(x) - self.mean) * self.factor)
        return logits

    def train(self, mode: bool = True) -> Network:
        """Only dropout and the like learn of it: normalisation keeps its stored statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def view_number(recipe: Recipe, epoch: int) -> int:
    """Which view an epoch sees; 0 is the plain one and is kept for judging."""
    return 1 + epoch % recipe.views if recipe.views else 0


def train(
    task: Task,
    recipe: Recipe,
    rows: Ints,  # of the images to learn from
    start: Exact,
    *,
    seed: int,
    checkpoint: Path | None = None,
    watch: Watch = SILENT,
    give_up: Callable[[int, float], bool] = lambda epochs, seconds: False,
) -> Trained | None:
    """Train by the recipe on the given images.

    Goes on from `checkpoint` where one was left, and leaves one after every epoch. `give_up`, asked
    after each epoch with epochs done and seconds spent, ends a training that proves too dear: None.
    """
    course = _Course(task, recipe, rows, start, seed)
    course.resume(checkpoint)
    view_seconds = 0.0
    watch.begin("train", recipe.epochs * len(rows))
    watch.advance(course.seen)
    while course.epoch < recipe.epochs:
        began = time.perf_counter()
        task.store.ensure((course.network.point,), view_number(recipe, course.epoch))
        view_seconds += time.perf_counter() - began
        course.run_epoch(checkpoint, watch)
        if course.epoch < recipe.epochs and give_up(course.epoch, view_seconds + sum(e.seconds for e in course.curve)):
            watch.end()
            return None
    watch.end()
    return Trained(course.averaged(), tuple(course.curve), view_seconds)


def predict(network: Network, store: Store, rows: Ints, *, batch: int = 64) -> Floats:
    """Logits of images through their plain view: (len(rows), C)."""
    store.ensure((network.point,), 0)
    stored, on = store.mapped(network.point, 0), next(network.parameters()).device
    network.eval()
    with torch.inference_mode(), exact_arithmetic(on):
        parts = [
            network(torch.from_numpy(stored[rows[i : i + batch]]).to(on)).cpu().double().numpy()
            for i in range(0, len(rows), batch)
        ]
    return np.concatenate(parts) if parts else np.zeros((0, network.head.out_features))


def grafted(backbone: Backbone, recipe: Recipe, network: Network) -> Backbone:
    """The backbone with the trained segments in place of the learnt ones."""
    first, last = backbone.index(recipe.unfreeze), backbone.index(recipe.cut)
    trained = tuple(cast(fx.GraphModule, copy.deepcopy(s).cpu().eval()) for s in network.segments)
    segments = (*backbone.chain.segments[:first], *trained, *backbone.chain.segments[last + 1 :])
    return replace(backbone, chain=replace(backbone.chain, segments=segments))


def raw_head(network: Network) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # (d, C), (C,)
    """The head on pooled features as they are, with the standardisation folded in."""
    weight = network.head.weight.detach().double().cpu() * network.factor.double().cpu()
    bias = network.head.bias.detach().double().cpu() - weight @ network.mean.double().cpu()
    return weight.T.float().contiguous().numpy(), bias.float().numpy()


def stages(cuts: Sequence[Cut]) -> list[int]:
    """The stage of every cut: cuts of one map size form a stage, counted from the input."""
    found, stage = [], -1
    for i, cut in enumerate(cuts):
        stage += i == 0 or cut.height < cuts[i - 1].height
        found.append(stage)
    return found


def rates(backbone: Backbone, recipe: Recipe) -> dict[str, float]:
    """Learning rate of every trained block, from head to stem lower by `decay` a stage."""
    first, last = backbone.index(recipe.unfreeze), backbone.index(recipe.cut)
    stage = stages(backbone.cuts)
    trained = range(first, first + 1) if recipe.strategy == "surgical" else range(first, last + 1)
    # Alone, the first block is no early layer among others: it takes the whole rate (Lee et al., ICLR 2023).
    top = stage[first] if recipe.strategy == "surgical" else stage[last]
    return {backbone.cuts[k].name: recipe.lr * recipe.decay ** (top - stage[k]) for k in trained}


_PARTS = ("now", "average", "first", "second")
"""Of every trained parameter in a checkpoint: its value, the average's, and the optimiser's two moments."""


class _Saved(msgspec.Struct, frozen=True):
    """How far a training had come when it was saved."""

    format: str
    epoch: int
    step: int
    micro: int
    partial: tuple[float, float]
    curve: list[tuple[float, float]]
    random: str


class _Course:
    """One training under way: network, optimiser, average, and how far it has come."""

    def __init__(self, task: Task, recipe: Recipe, rows: Ints, start: Exact, seed: int) -> None:
        self.task, self.recipe, self.rows, self.seed = task, recipe, rows, seed
        self.device = device()
        self.network = Network(task.store.backbone, recipe, start).to(self.device)
        self.network.train()
        torch.manual_seed(seed)  # for dropout inside a backbone, the only thing that still draws
        self.steps = math.ceil(len(rows) / recipe.batch)  # per epoch
        recorded = replay.possible(self.device)
        self.optimiser = torch.optim.AdamW(
            _groups(self.network, task.store.backbone, recipe), weight_decay=recipe.weight_decay, fused=True,
            capturable=recorded,
        )  # fmt: skip
        self.full_rates = torch.tensor([g["full_lr"] for g in self.optimiser.param_groups], device=self.device)
        self.rates = self.full_rates.clone() if recorded else None  # what a recorded step reads, on the device
        self.replays: dict[int, replay.Replay | None] = {}  # by images in the batch; None: not to be
        window = max(1.0, recipe.average * self.steps)
        # torch's AveragedModel counts its updates in a tensor, and asks the device for it at each step.
        self.average, self._towards = copy.deepcopy(self.network), get_ema_multi_avg_fn(1 - 1 / window)  # type: ignore[no-untyped-call]
        weights = class_weights(task.labels[rows], task.classes) if recipe.balance else np.ones(task.classes)
        self.weights = torch.from_numpy(weights).float()
        self.weights_there = self.weights.to(self.device)
        self.feed = Feed(lambda number: task.store.mapped(self.network.point, number), task.labels, self.device)
        self.half = _half(self.device)
        self.micro = recipe.batch
        self.epoch, self.step = 0, 0  # the next step, within the epoch
        self.partial = Epoch(0.0, 0.0)  # of the epoch under way: summed loss and seconds
        self.losses: list[tuple[Tensor, float]] = []  # of its last steps, on the device, and what each weighs
        self.curve: list[Epoch] = []

    @property
    def seen(self) -> int:
        """Images that have been trained on so far, epochs counted."""
        return self.epoch * len(self.rows) + min(len(self.rows), self.step * self.recipe.batch)

    def run_epoch(self, checkpoint: Path | None, watch: Watch) -> None:
        """Go on to the end of this epoch."""
        size = self.recipe.batch
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        todo = [order[i * size : (i + 1) * size] for i in range(self.step, self.steps)]
        self.began = saved = time.perf_counter()
        for x, y, labels in self.feed.batches(view_number(self.recipe, self.epoch), todo):
            self._set_rate()
            self._learn(x, y, labels)
            self.step += 1
            watch.advance(len(labels))
            if checkpoint is not None and time.perf_counter() - saved > CHECKPOINT_S and self.step < self.steps:
                self.save(checkpoint)
                self.began = saved = time.perf_counter()
        self._settle()
        self.curve.append(Epoch(self.partial.loss / len(self.rows), self.partial.seconds))
        self.epoch, self.step, self.partial = self.epoch + 1, 0, Epoch(0.0, 0.0)
        if checkpoint is not None:
            self.save(checkpoint)

    def _settle(self) -> None:
        """Count what was learnt since the last time. Only here is an accelerator waited for."""
        if not self.losses:
            return
        told = torch.stack([loss for loss, _ in self.losses]).tolist()
        loss = self.partial.loss
        for value, (_, share) in zip(told, self.losses, strict=True):
            loss += value * share
        now = time.perf_counter()
        self.partial = Epoch(loss, self.partial.seconds + now - self.began)
        self.losses, self.began = [], now

    def averaged(self) -> Network:
        """The network with the averaged weights, in evaluation mode."""
        return copy.deepcopy(self.average).eval()

    def _set_rate(self) -> None:
        done = (self.epoch * self.steps + self.step) / (self.recipe.epochs * self.steps)
        factor = schedule(done, self.recipe.warm_up, 1 / (self.recipe.epochs * self.steps))
        if self.rates is not None:
            torch.mul(self.full_rates, factor, out=self.rates)
        for k, group in enumerate(self.optimiser.param_groups):
            group["lr"] = group["full_lr"] * factor if self.rates is None else self.rates[k]

    def _learn(self, x: Tensor, y: Tensor, labels: Tensor) -> None:
        """One step. Halves the images per pass where memory runs out: no statistic
        of the batch enters, so the sum of the parts' gradients is the whole batch's gradient."""
        recorded = self._recorded(x, y)
        if recorded is not None:
            self.losses.append((recorded(x, y), float(len(labels))))
            return
        weight = float(self.weights[labels].sum())
        while True:
            try:
                losses = self._backward(x, y, weight)
                break
            except RuntimeError as error:
                if self.micro == 1 or not _out_of_memory(error):
                    raise
                self.micro = max(1, min(self.micro, len(labels)) // 2)
        self._step()
        self._follow(first=self.epoch == self.step == 0)
        self.losses += [(loss, len(labels) / weight) for loss in losses]

    def _recorded(self, x: Tensor, y: Tensor) -> replay.Replay | None:
        """The step for batches of this size as one launch, where the steps to come repay recording it."""
        size, started = len(x), bool(self.epoch or self.step)  # the first step makes the optimiser's state
        if size not in self.replays and self.rates is not None and started and self.micro >= size:
            whole = len(self.rows) // self.recipe.batch
            each = whole if size == self.recipe.batch else 1
            if (self.recipe.epochs - self.epoch) * each >= replay.REPAYS:
                self.replays[size] = self._record(x, y)
        return self.replays.get(size)

    def _record(self, x: Tensor, y: Tensor) -> replay.Replay | None:
        def step(x: Tensor, y: Tensor) -> Tensor:
            weight = self.weights_there[y].sum()
            (loss,) = self._backward(x, y, weight)
            self._step()
            self._follow(first=False)
            return loss / weight

        learnt = [p for p in self.network.parameters() if p.requires_grad]
        moments = [t for p in learnt for t in self.optimiser.state[p].values()]
        beside = next((r for r in self.replays.values() if r is not None), None)
        try:
            return replay.Replay(step, x, y, [*learnt, *moments, *self.average.parameters()], beside=beside)
        except RuntimeError:  # too little memory, or an operation that cannot be recorded: one by one, as elsewhere
            return None

    def _backward(self, x: Tensor, y: Tensor, weight: float | Tensor) -> list[Tensor]:
        """Gradients of the batch's mean loss, and the summed loss of each part of it."""
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        for stored, labelled in zip(torch.split(x, self.micro), torch.split(y, self.micro), strict=True):
            half = self.half or torch.bfloat16
            with torch.autocast(self.device.type, half, enabled=self.half is not None, cache_enabled=False):
                logits = self.network(stored)
            # Each image by its class's weight. cross_entropy's own `weight` would weigh the smoothed part by every
            # class: of 348 blood cells, the 3 of the rarest class drew all answers to them.
            each = nn.functional.cross_entropy(
                logits.float(), labelled, reduction="none", label_smoothing=self.recipe.smoothing
            )
            loss = (self.weights_there[labelled] * each).sum()
            torch.autograd.backward(loss / weight)
            losses.append(loss.detach())
        return losses

    def _step(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimiser.step()

    def _follow(self, *, first: bool) -> None:
        """Bring the average one step towards the weights; at first it is the weights."""
        now: list[Tensor] = list(self.network.parameters())
        average: list[Tensor] = list(self.average.parameters())
        with torch.no_grad():
            if first:
                torch._foreach_copy_(average, now)
            else:
                self._towards(average, now, None)

    def save(self, path: Path) -> None:
        """Write everything that the rest depends on, aside and then renamed."""
        self._settle()
        tensors: dict[str, Tensor] = {}
        averaged = dict(self.average.named_parameters())
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            state = self.optimiser.state[parameter]
            tensors[f"now.{name}"], tensors[f"average.{name}"] = parameter.detach(), averaged[name].detach()
            tensors[f"first.{name}"], tensors[f"second.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        saved = _Saved(
            _FORMAT, self.epoch, self.step, self.micro, (self.partial.loss, self.partial.seconds),
            [(e.loss, e.seconds) for e in self.curve], _random(self.device),
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        contiguous = {k: t.cpu().contiguous() for k, t in tensors.items()}
        save_file(contiguous, aside, metadata={"course": msgspec.json.encode(saved).decode()})
        aside.replace(path)

    def resume(self, path: Path | None) -> None:
        """Take up what a checkpoint left; one that cannot be read, or is of something else, is started over."""
        if path is None or not path.exists():
            return
        learnt = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        try:
            with safe_open(path, "pt") as file:
                saved = msgspec.json.decode((file.metadata() or {})["course"], type=_Saved)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            wanted = {f"{part}.{name}": p.shape for name, p in learnt.items() for part in _PARTS}
            fits = {k: t.shape for k, t in tensors.items()} == wanted and saved.format == _FORMAT
            if not fits or len(saved.curve) != saved.epoch or not 0 <= saved.step < self.steps:
                return
            _draw_on(self.device, saved.random)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError, msgspec.DecodeError):
            return
        steps = saved.epoch * self.steps + saved.step
        averaged = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, parameter in learnt.items():
                parameter.copy_(tensors[f"now.{name}"])
                averaged[name].copy_(tensors[f"average.{name}"])
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[f"first.{name}"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"second.{name}"]),
                }
        self.epoch, self.step, self.micro = saved.epoch, saved.step, saved.micro
        self.partial = Epoch(*saved.partial)
        self.curve = [Epoch(*pair) for pair in saved.curve]


def schedule(done: float, warm_up: float, step: float) -> float:
    """Share of the full rate after `done` (0..1) of the training: a linear rise, then half a cosine to 0."""
    if done < warm_up:
        return (done + step) / (warm_up + step)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _keep_channels_first(convolution: nn.Conv2d) -> None:
    """Give it weights and inputs that are not taken for channels-last ones; values stay what they are."""
    with torch.no_grad():
        convolution.weight.data = torch.empty(convolution.weight.shape).copy_(convolution.weight)
    convolution.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))


def _inverse(scale: Floats) -> Tensor:
    return torch.from_numpy(1 / scale).float()


def _groups(network: Network, backbone: Backbone, recipe: Recipe) -> list[dict[str, object]]:
    """Parameter groups: one rate per block and for the head, no weight decay on vectors."""
    parts: list[tuple[float, list[nn.Parameter]]] = [(recipe.lr, list(network.head.parameters()))]
    for rate, segment in zip(rates(backbone, recipe).values(), network.segments, strict=False):
        parts.append((rate, list(segment.parameters())))
    groups: list[dict[str, object]] = []
    for rate, parameters in parts:
        matrices = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() <= 1]
        groups += [{"params": matrices, "lr": rate, "full_lr": rate}] if matrices else []
        groups += [{"params": vectors, "lr": rate, "full_lr": rate, "weight_decay": 0.0}] if vectors else []
    return groups


def _half(on: torch.device) -> torch.dtype | None:
    """Half precision for training, only where the hardware is made for it; on CPUs it was slower (bench/LOG.md)."""
    made_for_it = on.type == "xpu" or (on.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.bfloat16 if made_for_it else None


def _random(on: torch.device) -> str:
    """The state of what dropout draws from on a device."""
    state = torch.get_rng_state() if on.type == "cpu" else torch.get_device_module(on).get_rng_state()
    return bytes(state.numpy()).hex()


def _draw_on(on: torch.device, random: str) -> None:
    state = torch.from_numpy(np.frombuffer(bytes.fromhex(random), np.uint8).copy())
    if on.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(on).set_rng_state(state)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "allocate" in str(error)
