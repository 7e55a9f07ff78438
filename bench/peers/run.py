"""The same task for topwork and its peers, each in its own environment and process, in turn.

Same images, same weights (EfficientNet-Lite0), same training and test part, same input size, same number of threads.
Printed: accuracy on the test part, wall and processor seconds, peak memory, accuracy reached after 1, 2, 4 and 8
minutes, as a table per set and as a picture. Looking at the test part is not charged. README.md beside this file says
what each peer does, and after which page of its documentation.

The order is set, run, peer, so that noise hits all alike. Every single run is appended to --results at once, and what
is there already is not run again: the bench can be run in pieces, and the tables are of everything in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import envs
import shown

import common

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """One way of doing the task: whose environment, which adapter, which of its modes."""

    name: str
    env: str
    adapter: str
    mode: str


PEERS = {
    p.name: p
    for p in (
        Peer("topwork-head", "topwork", "topwork_.py", "head"),
        Peer("topwork-head-best", "topwork", "topwork_.py", "head-best"),
        Peer("topwork-2m", "topwork", "topwork_.py", "2m"),
        Peer("topwork", "topwork", "topwork_.py", "default"),
        Peer("sklearn", "sklearn", "sklearn_.py", "default"),
        Peer("sklearn-best", "sklearn", "sklearn_.py", "best"),
        Peer("fastai", "fastai", "fastai_.py", "default"),
        Peer("fastai-best", "fastai", "fastai_.py", "best"),
        Peer("keras", "keras", "keras_.py", "default"),
        Peer("torchvision-frozen", "torchvision", "torchvision_.py", "frozen"),
        Peer("torchvision", "torchvision", "torchvision_.py", "default"),
        Peer("timm", "timm", "timm_.py", "default"),
        Peer("timm-best", "timm", "timm_.py", "best"),
        Peer("autogluon", "autogluon", "autogluon_.py", "default"),
        Peer("autogluon-best", "autogluon", "autogluon_.py", "best"),
    )
}
SETS = ("ants_bees", "flowers17", "dtd10", "neu6", "wbc5")
QUICK = {"sets": ["wbc5"], "peers": ["topwork-head", "sklearn", "fastai"], "runs": 1, "limit": 15.0, "size": 96}
GRACE = 2.0, 120.0  # a run is ended after so many times its limit and so many seconds more: judging is not in the limit
SAMPLED_S = 1.0  # how often memory is looked at: a look costs some milliseconds of a core


def main() -> None:
    o = _options()
    common.need_sets()
    rows = _read(o.results)
    peers = [PEERS[name] for name in o.peers]
    left_out = {} if o.report_only else _left_out(peers, o.envs, make=not o.quick)
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    peers = [p for p in peers if p.name not in left_out]
    if o.make_only:
        return
    if not o.report_only:
        with tempfile.TemporaryDirectory() as folder:
            weights = _weights(Path(folder))
            for name in o.sets:
                task = _laid(name, Path(folder))
                for run in range(o.runs):
                    for peer in peers:
                        key = {"set": name, "peer": peer.name, "run": run, "size_px": o.size, "limit_s": o.limit}
                        if any(all(row[k] == v for k, v in key.items()) for row in rows):
                            continue
                        rows.append({**key, **_measured(peer, task, weights, run, o)})
                        with o.results.open("a") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
                        _say(rows[-1])
    seen = [r for r in rows if r["size_px"] == o.size and r["set"] in o.sets and r["peer"] in o.peers]
    figures = shown.show(seen, order=list(PEERS), picture=o.picture)
    common.finish(
        {
            "bench": "peers", "quick": o.quick, "results": str(o.results), "left_out": left_out, "size_px": o.size,
            **figures,
        }
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help="folders in ../shared/data")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER",
                        help=", ".join(PEERS))  # fmt: skip
    parser.add_argument("--runs", type=int, default=3, help="per set and peer; each with its own seed (default 3)")
    parser.add_argument("--limit", type=float, default=480.0, metavar="SECONDS",
                        help="a peer is stopped then, and judged by its last answer (default 480)")  # fmt: skip
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="input size (default 224)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS of all (default: cores)")
    parser.add_argument("--envs", type=Path, default=envs.DEFAULT, help=f"environments (default {envs.DEFAULT})")
    parser.add_argument("--results", type=Path, help="JSON lines, one per run (default: a new file beside --envs)")
    parser.add_argument("--picture", type=Path, help="writes PICTURE.svg and PICTURE.png (default: beside --results)")
    parser.add_argument("--make-only", action="store_true", help="make the environments and run nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing, show what --results holds")
    parser.add_argument("--quick", action="store_true", help="one set, 96 px, peers whose environments are there")
    o = parser.parse_args()
    if o.quick:
        vars(o).update(QUICK)
    o.envs = o.envs.resolve()
    if o.results is None:
        o.results = o.envs.parent / f"peers-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
    o.results.parent.mkdir(parents=True, exist_ok=True)
    if o.picture is None:
        o.picture = o.results.with_suffix("")
    return o


def _left_out(peers: list[Peer], folder: Path, *, make: bool) -> dict[str, str]:
    """Peers that cannot run, with the reason. Each import is done once, so that no run pays for a cold disk."""
    failed: dict[str, str] = {}
    for env in dict.fromkeys(p.env for p in peers):
        try:
            if make:
                envs.make(folder, env)
            elif not envs.made(folder, env):
                failed[env] = f"no environment {folder / env}; run without --quick, or with --make-only"
                continue
        except (OSError, subprocess.CalledProcessError) as error:
            failed[env] = f"its environment could not be made ({error})"
    for peer in {p.adapter: p for p in peers if p.env not in failed}.values():
        text = (HERE / peer.adapter).read_text()
        imports = "\n".join(line for line in text.splitlines() if line.startswith(("import ", "from ", "os.")))
        tried = subprocess.run(
            [envs.python(folder, peer.env), "-c", imports], cwd=HERE, env=_variables(1), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if tried.returncode:
            failed[peer.env] = "its imports fail: " + (tried.stderr.strip().splitlines() or ["?"])[-1]
    return {p.name: failed[p.env] for p in peers if p.env in failed}


# ---- the task


@dataclass(frozen=True)
class Task:
    """A set, laid out as train/CLASS/FILE and test/CLASS/FILE."""

    name: str
    folder: Path
    labels: tuple[int, ...]  # of the test images, in the order of `points.Task.test_files`
    train: int
    digest: str


def _laid(name: str, scratch: Path) -> Task:
    """The published test part where there is one, else 30% set aside by `common.split`.

    A class without a single training image is left out on both sides: there are methods that cannot have it.
    """
    source, folder = common.SETS / name, scratch / name
    if (source / "train").is_dir() and (source / "test").is_dir():
        for path in sorted([*source.glob("train/*/*"), *source.glob("test/*/*")]):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    else:
        common.split(source, folder)
    classes = sorted(p.name for p in (folder / "train").iterdir())
    for stray in (p for p in (folder / "test").iterdir() if p.name not in classes):
        print(f"{name}: {stray.name} has no training image and is left out", file=sys.stderr)
        for path in stray.iterdir():
            path.unlink()
        stray.rmdir()
    for name_ in classes:
        (folder / "test" / name_).mkdir(exist_ok=True)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*/*")):
        digest.update(str(path.relative_to(folder)).encode())
        path.read_bytes()  # from here on in the page cache, for all alike
    labels = [i for i, c in enumerate(classes) for _ in (folder / "test" / c).iterdir()]
    return Task(name, folder, tuple(labels), len(list(folder.glob("train/*/*"))), digest.hexdigest()[:16])


def _weights(scratch: Path) -> Path:
    """The embedded weights as timm names them, as a PyTorch state dict."""
    import torch

    from topwork import zoo
    from topwork.watch import SILENT

    source, target = zoo.find(zoo.EMBEDDED), scratch / "tf_efficientnet_lite0.pth"
    torch.save(source.read(source.pull(SILENT)), target)
    return target


# ---- one run


def _measured(peer: Peer, task: Task, weights: Path, run: int, o: argparse.Namespace) -> dict[str, object]:
    logs = o.results.with_suffix("")
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, (logs / f"{task.name}-{run}-{peer.name}.log").open("w") as log:
        out = Path(scratch) / "points.jsonl"
        command = [
            str(envs.python(o.envs, peer.env)), str(HERE / peer.adapter), str(task.folder / "train"),
            str(task.folder / "test"), str(weights), str(out), "--mode", peer.mode, "--size", str(o.size), "--seed",
            str(run), "--deadline", str(o.limit),
        ]  # fmt: skip
        place = Path(scratch) / "tmp"
        place.mkdir()
        used = _watched(command, _variables(o.threads) | {"TMPDIR": str(place)}, place, log, o.limit)
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    answers = [line for line in lines if "predicted" in line]
    stopped = next((line for line in lines if "stopped" in line), None)
    free_cpu = max((line.get("free_cpu_s", 0.0) for line in lines), default=0.0)
    return {
        "points": [
            {
                "seconds": p["seconds"], "note": p["note"],
                "accuracy": sum(a == b for a, b in zip(p["predicted"], task.labels, strict=True)) / len(task.labels),
            }
            for p in answers
        ],
        "finished": used["code"] == 0 and bool(answers), "stopped": stopped is not None, **used,
        "wall_s": answers[-1]["seconds"] if used["code"] == 0 and answers else o.limit,
        "cpu_s": used["cpu_s"] - free_cpu, "train": task.train, "test": len(task.labels), "split": task.digest,
        "versions": next((line["versions"] for line in lines if "versions" in line), {}),
        "threads": o.threads, "when": datetime.now(UTC).isoformat(timespec="seconds"), "load_before": used["load"],
    }  # fmt: skip


def _variables(threads: int) -> dict[str, str]:
    """The same for all: the threads; no hub; none of this process's own paths."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        kept[name] = str(threads)
    return kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def _watched(
    command: list[str], variables: dict[str, str], place: Path, log: object, limit: float
) -> dict[str, object]:
    """Run it in a session of its own: exit status, processor seconds, peak memory of all its processes."""
    load = os.getloadavg()[0]
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=variables | {"PEER_BORN": repr(began)}, cwd=place, stdin=subprocess.DEVNULL, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    over, peak = threading.Event(), [0.0, 0.0]
    watcher = threading.Thread(target=_sample, args=(process.pid, over, peak), daemon=True)
    watcher.start()
    ender = threading.Timer(GRACE[0] * limit + GRACE[1], _end, (process.pid,))
    ender.start()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    ender.cancel()
    over.set()
    watcher.join()
    _end(process.pid)  # workers that it left behind
    largest = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "code": process.returncode, "elapsed_s": elapsed, "cpu_s": max(usage.ru_utime + usage.ru_stime, peak[1]),
        "peak_mib": max(peak[0], largest), "largest_mib": largest, "load": load,
    }  # fmt: skip


def _sample(session: int, over: threading.Event, peak: list[float]) -> None:
    """Memory of all processes of a session, shared pages once (PSS); processor seconds, for one that is ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    while not over.wait(SAMPLED_S):
        memory = cpu = 0.0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == session:
                    cpu += sum(map(int, stat[11:15])) / ticks
                    memory += next(
                        int(line.split()[1]) / 1024
                        for line in (folder / "smaps_rollup").read_text().splitlines()
                        if line.startswith("Pss:")
                    )
            except (OSError, StopIteration):
                continue  # it ended meanwhile
        peak[0], peak[1] = max(peak[0], memory), max(peak[1], cpu)


def _end(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _say(row: dict[str, object]) -> None:
    points = row["points"]
    last = f"{100 * points[-1]['accuracy']:.1f}% after {points[-1]['seconds']:.1f} s" if points else "no answer"
    how = "" if row["finished"] else " (stopped at the limit)" if row["stopped"] else f" (exit {row['code']})"
    print(f"{row['set']} run {row['run']} {row['peer']}: {last}{how}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
