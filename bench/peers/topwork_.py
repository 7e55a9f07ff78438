"""topwork itself. What is done is in README.md."""

import points

TASK = points.Task(["topwork", "timm", "torch"])

from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402

import topwork  # noqa: E402

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
