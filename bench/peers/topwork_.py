"""topwork itself. What is done is in README.md."""

from pathlib import Path
from tempfile import TemporaryDirectory

import points

import topwork

TASK = points.Task(["topwork", "timm", "torch"])

MODES = {
    "head": {"strategy": "head"},
    "default": {},
    "2m": {"budget": "2m"},
}


def main():
    with TemporaryDirectory() as folder:
        run = topwork.fit(
            TASK.train, size=TASK.size, seed=TASK.seed, out=Path(folder) / "run", cache=Path(folder) / "cache",
            **MODES[TASK.mode],
        )  # fmt: skip
        with TASK.free():
            answers = [TASK.classes.index(a.label) for a in run.model.predict(TASK.test_files)]
            chosen = f"{run.plan.strategy} at {run.plan.cut}"
            TASK.point(answers, note=chosen, fe_seconds=run.record.spending.fe_seconds)


main()
