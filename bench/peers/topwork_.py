"""topwork itself. What is done is in README.md."""

from pathlib import Path
from tempfile import TemporaryDirectory

import points

import topwork

TASK = points.Task(["topwork", "timm", "torch"])

MODES = {
    "head": {"strategy": "head"},
    "head-best": {"strategy": "head", "delta": 0.0},  # no accuracy given for a cheaper model
    "default": {},
    "2m": {"budget": "2m"},
}


class Judged:
    """What it has before it trains layers lies on disk from then on: judged at once, at no charge."""

    def begin(self, stage, total): ...

    def advance(self, steps=1): ...

    def end(self): ...

    def show(self, what, fact):
        if what == "so far":
            judge(topwork.load_run(fact[0]))


def judge(run):
    with TASK.free():
        answers = [TASK.classes.index(a.label) for a in run.model.predict(TASK.test_files)]
        chosen = f"{run.plan.strategy} at {run.plan.cut}"
        TASK.point(answers, note=chosen, fe_seconds=run.record.spending.fe_seconds)


def main():
    with TemporaryDirectory() as folder:
        run = topwork.fit(
            TASK.train, size=TASK.size, seed=TASK.seed, out=Path(folder) / "run", cache=Path(folder) / "cache",
            watch=Judged(), **MODES[TASK.mode],
        )  # fmt: skip
        judge(run)


main()
