"""How does the server stand load, overload and trouble?

One run (flowers17, frozen) is served by `topwork serve` in a process of its own; clients are sockets of this one, on
the same cores. Bounds: throughput at 32 clients within 15% of bare ONNX Runtime with decoding; at 4 times the load that
it can bear, fast 503s, no growth of memory, and answers again within a second; 10,000 mutated images: no crash, memory
flat within 5%; clients that trickle, hang up and send bombs: the others do not notice.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

import common

ROUNDS, CLIENTS = 3, 32
SECONDS = 8.0  # of each measurement
MUTATED = 10_000
VARIANTS: tuple[tuple[str, dict[str, int]], ...] = (("as it is", {}), ("one by one", {"batch": 1}))


@dataclass
class Found:
    """What a load came to."""

    seconds: float
    latency: dict[int, list[float]] = field(default_factory=dict)  # by status

    def count(self, status: int = 200) -> int:
        """Answers of a status."""
        return len(self.latency.get(status, []))

    @property
    def rate(self) -> float:
        """Images answered a second."""
        return self.count() / self.seconds

    def ms(self, share: float, status: int = 200) -> float:
        """Milliseconds that this share of the answers of a status took at most."""
        values = sorted(self.latency.get(status, [])) or [float("nan")]
        return 1000 * values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    given = common.arguments(__doc__ or "", rounds=ROUNDS)
    common.need_sets()
    import topwork

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = 96 if given.quick else 224
        run = topwork.fit(
            common.SETS / "flowers17", strategy="head", several_depths=False, size=size, out=root / "run",
            cache=root / "cache",
        )  # fmt: skip
        contents = [p.read_bytes() for p in sorted((common.SETS / "flowers17").glob("*/*.jpg"))[::3]]
        mean = sum(map(len, contents)) / len(contents)
        print(f"model {run.plan.cut} at {size} px; {len(contents)} JPEGs of {mean:,.0f} bytes")
        throughput(run.path, contents, 1 if given.quick else given.rounds, 2.0 if given.quick else SECONDS)
        overload(run.path, contents, 2.0 if given.quick else SECONDS)
        trouble(run.path, contents, 2.0 if given.quick else SECONDS)
        mutated(run.path, contents, 600 if given.quick else MUTATED)


# ---- throughput


def throughput(run: Path, contents: Sequence[bytes], rounds: int, seconds: float) -> None:
    """Bare ONNX Runtime, the server with and without batches, in turn."""
    rows: dict[str, list[Found]] = {}
    bares = []
    for _ in range(rounds):
        bares.append(bare(run, contents, seconds))
        for name, options in VARIANTS:
            with server(run, **options) as (port, _):
                asyncio.run(closed(port, contents, 2, 0.5))
                many = asyncio.run(closed(port, contents, CLIENTS, seconds))
                rows.setdefault(f"{CLIENTS} clients, {name}", []).append(many)
                rows.setdefault(f"1 client, {name}", []).append(asyncio.run(closed(port, contents, 1, seconds / 2)))
    print(f"bare onnxruntime with decoding: {statistics.median(bares):.1f} images/s")
    for name, found in rows.items():
        shares = [f.rate / b for f, b in zip(found, bares, strict=True)]
        print(
            f"{name:>24}: {statistics.median(f.rate for f in found):.1f} images/s, {statistics.median(shares):.2f} of"
            f" bare; p50 {statistics.median(f.ms(0.5) for f in found):.0f} ms, p99"
            f" {statistics.median(f.ms(0.99) for f in found):.0f} ms"
            + ("   (bound: 0.85 of bare)" if name == f"{CLIENTS} clients, as it is" else "")
        )


def bare(run: Path, contents: Sequence[bytes], seconds: float) -> float:
    """Images a second: decoding in as many threads as there are cores, batches of 8 in one session."""
    from topwork import runtime

    model = runtime.load(run)
    count, start = 0, time.perf_counter()

    def batches() -> Iterator[list[bytes]]:
        i = 0
        while time.perf_counter() - start < seconds:
            yield [contents[(i + k) % len(contents)] for k in range(8)]
            i += 8

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = None
        for batch in batches():
            now, ahead = ahead, [pool.submit(model.load, data) for data in batch]
            if now is not None:
                model.logits(np.stack([f.result() for f in now]))  # type: ignore[misc]
                count += len(now)
    return count / (time.perf_counter() - start)


# ---- overload


def overload(run: Path, contents: Sequence[bytes], seconds: float) -> None:
    """Four times as many requests a second as it answers, whether or not it answers."""
    with server(run) as (port, pid):
        asyncio.run(closed(port, contents, CLIENTS, seconds / 2))
        bears = asyncio.run(closed(port, contents, CLIENTS, seconds)).rate
        before = rss(pid)
        asyncio.run(open_loop(port, contents, 4 * bears, seconds))
        first = rss(pid)
        found = asyncio.run(open_loop(port, contents, 4 * bears, seconds))
        after, start = rss(pid), time.perf_counter()
        again = asyncio.run(closed(port, contents, 1, 0.0))
        print(
            f"4 times overload ({4 * bears:.0f} a second): {found.count() / found.seconds:.1f} answered a second"
            f" ({found.count() / found.seconds / bears:.2f} of what it bears),"
            f" {found.count(503)} of {sum(map(len, found.latency.values()))} told 503 after p50"
            f" {found.ms(0.5, 503):.0f}, p99 {found.ms(0.99, 503):.0f} ms;"
            f" others {sorted(set(found.latency) - {200, 503})}"
        )
        print(f"   memory {before:.0f} MB before, {first:.0f} and {after:.0f} MB after; the next answer took"
              f" {time.perf_counter() - start:.2f} s (bound 1 s), status {sorted(again.latency)}")  # fmt: skip


# ---- trouble


def trouble(run: Path, contents: Sequence[bytes], seconds: float) -> None:
    """One steady client, alone and beside those that trickle, hang up and send bombs."""
    content = bomb()
    with server(run) as (port, _):
        asyncio.run(closed(port, contents, 1, 1.0))
        alone = asyncio.run(closed(port, contents, 1, seconds))

        async def beside() -> Found:
            stop = asyncio.Event()
            kinds = (trickling, hanging_up, partial(bombing, content=content))
            pests = [asyncio.create_task(f(port, stop)) for f in kinds for _ in range(8)]
            found = await closed(port, contents, 1, seconds)
            stop.set()
            await asyncio.gather(*pests, return_exceptions=True)
            return found

        found = asyncio.run(beside())
    print(
        f"one client alone: p50 {alone.ms(0.5):.0f}, p99 {alone.ms(0.99):.0f} ms; beside 8 that trickle, 8 that hang up"
        f" and 8 that send bombs: p50 {found.ms(0.5):.0f}, p99 {found.ms(0.99):.0f} ms; statuses"
        f" {sorted(found.latency)}"
    )


async def trickling(port: int, stop: asyncio.Event) -> None:
    """A letter at a time."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(bytes(1000))[:-1000])
        while not stop.is_set() and not reader.at_eof():
            writer.write(b"x")
            await asyncio.sleep(0.1)
        writer.close()


async def hanging_up(port: int, stop: asyncio.Event) -> None:
    """Half a request, and gone."""
    while not stop.is_set():
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(bytes(5000))[:-2500])
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.05)


def bomb() -> bytes:
    """900 million pixels in 100 KB."""
    out = BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    return out.getvalue()


async def bombing(port: int, stop: asyncio.Event, content: bytes) -> None:
    """Bombs, one after the other."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await answer(reader, writer, request(content)) == 413
        writer.close()
        await asyncio.sleep(0.1)


def mutated(run: Path, contents: Sequence[bytes], count: int) -> None:
    """Images with bytes changed, left out and put in; seed 0."""
    rng = np.random.default_rng(0)

    def mutant(i: int) -> bytes:
        data = bytearray(contents[i % len(contents)])
        for _ in range(int(rng.integers(1, 12))):
            at = int(rng.integers(0, len(data)))
            kind = int(rng.integers(3))
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 200))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 50)))
        return bytes(data)

    with server(run) as (port, pid):
        sizes, statuses = [], Counter[int]()
        part = count // 10
        for turn in range(10):
            mutants = [mutant(turn * part + i) for i in range(part)]
            found = asyncio.run(closed(port, mutants, 4, 1e9, most=part))
            statuses.update({s: len(v) for s, v in found.latency.items()})
            sizes.append(rss(pid))
        print(
            f"{sum(statuses.values()):,} mutated images: statuses {dict(statuses)}; memory after each tenth"
            f" {', '.join(f'{s:.0f}' for s in sizes)} MB: the last {sizes[-1] / sizes[1]:.3f} of the second (1.05)"
        )


# ---- clients


def request(body: bytes) -> bytes:
    head = "POST /predict?top=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> int:
    """Send, and read the whole answer; its status."""
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


async def closed(port: int, contents: Sequence[bytes], clients: int, seconds: float, most: int | None = None) -> Found:
    """Each client asks again as soon as it is answered, for so many seconds (at least once) or images of all."""
    start = time.perf_counter()
    found, asked = Found(0.0), iter(range(10**9 if most is None else most))

    async def one(k: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in asked:
            before = time.perf_counter()
            data = contents[(7 * k + i) % len(contents)] if most is None else contents[i]
            status = await answer(reader, writer, request(data))
            found.latency.setdefault(status, []).append(time.perf_counter() - before)
            if time.perf_counter() - start >= seconds:
                break
        writer.close()

    await asyncio.gather(*(one(k) for k in range(clients)))
    found.seconds = time.perf_counter() - start
    return found


async def open_loop(port: int, contents: Sequence[bytes], rate: float, seconds: float) -> Found:
    """So many requests a second, each over a connection that is free or new."""
    found, free, tasks = Found(0.0), [], []
    start = time.perf_counter()

    async def one(i: int) -> None:
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        before = time.perf_counter()
        try:
            status = await answer(reader, writer, request(contents[i % len(contents)]))
        except (asyncio.IncompleteReadError, ConnectionError):
            status = 0
        found.latency.setdefault(status, []).append(time.perf_counter() - before)
        if status in {200, 503}:
            free.append((reader, writer))

    i = 0
    while time.perf_counter() - start < seconds:
        while i < rate * (time.perf_counter() - start):
            tasks.append(asyncio.create_task(one(i)))
            i += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    found.seconds = time.perf_counter() - start
    for _, writer in free:
        writer.close()
    return found


# ---- the server


@contextmanager
def server(run: Path, **options: int) -> Iterator[tuple[int, int]]:
    """`topwork serve` in a process of its own: its port and its number. `options`: of `serve`."""
    code = (
        "import sys\nfrom topwork import runtime, serve\n"
        "serve.serve([sys.argv[1]], runtime.load, port=0, ready=lambda a: print(a, flush=True)"
        f"{''.join(f', {k}={v}' for k, v in options.items())})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield int(address.rstrip("/").rpartition(":")[2]), process.pid
        assert process.poll() is None, "the server ended"
    finally:
        process.terminate()
        process.wait(60)


def rss(pid: int) -> float:
    """Megabytes in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
