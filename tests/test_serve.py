"""The server: what it answers, what it refuses and how, and that one client's trouble is not another's."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import socket
import threading
import time
import tomllib
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import typer
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from topwork import answers, cli, images
from topwork.answers import Seen
from topwork.asking import Asked
from topwork.errors import UsageError
from topwork.explanation import Neighbour
from topwork.known import Known
from topwork.records import Coverage, Estimate, ModelFacts, Preprocessing, Sets, Unknown
from topwork.serve import Limits, create, guard, run
from topwork.serve.app import openapi
from topwork.serve.batching import Batch, Batcher, FullError
from topwork.serve.desk import Learnt, Served

CLASSES = ("red", "green", "blue & <b>")
FACTS = ModelFacts(
    1, "0", "tiny", "f" * 16, "c", ("c",), Preprocessing(40, 32, "bilinear", (0.5,) * 3, (0.5,) * 3), CLASSES, 1.0, 3,
    "ridge", 0.5, Estimate(0.9, 0.8, 0.95, 50, "out-of-sample"), {},
)  # fmt: skip


def knowing() -> Colours:
    """A model that has learnt from reds and greens, can tell what is like neither, and names sets."""
    rng = np.random.default_rng(0)
    shades = [np.clip(rng.normal(c, 12, 3), 0, 255).astype(np.uint8) for c in [(220, 10, 10), (10, 220, 10)] * 30]
    model = Colours()
    batch = np.stack([np.broadcast_to(s, (32, 32, 3)) for s in shades])
    model.known = Known.of(model.see(batch).pooled)
    scores = np.sort(model.known.scores(model.see(batch).pooled))
    quantiles = tuple(float(np.quantile(scores, q / 100)) for q in range(101))
    on = Estimate(0.05, 0.0, 0.1, 60, "out-of-sample")
    model.facts = dataclasses.replace(
        FACTS, unknown=Unknown("distance", 0.05, quantiles[95], quantiles, 60, on),
        sets=Sets(tuple(q / 100 for q in range(101)), 60, (Coverage(0.9, on, 1.0),)),
    )  # fmt: skip
    model.batches.clear()
    return model


class Remembering:
    """Training images: a red one, then greens."""

    def nearest(self, pooled: NDArray[np.float32], /) -> list[list[Neighbour]]:
        return [[Neighbour("secret/red.png", "red", 0.9), *[Neighbour("g.png", "green", 0.5)] * 4]] * len(pooled)


class Colours(Asked):
    """A model that says which colour an image has most of. May be told to wait, or to fail."""

    def __init__(self, *, facts: ModelFacts = FACTS) -> None:
        self.facts = facts
        self.batches: list[int] = []
        self.fails = False
        self.go_on = threading.Event()  # while it is not set, whatever is computed waits
        self.go_on.set()

    @property
    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.eye(6, 3, dtype=np.float32) * 8, np.zeros(3, np.float32)

    def see(self, batch: NDArray[np.uint8]) -> Seen:
        self.batches.append(len(batch))
        if self.fails:
            raise RuntimeError("out of order")
        assert self.go_on.wait(60)
        maps = batch.astype(np.float32).transpose(0, 3, 1, 2) / 255
        pooled = np.concatenate([maps.mean((2, 3)), maps.max((2, 3))], axis=1)
        return Seen(8 * pooled[:, :3], pooled, (maps,))


def picture(colour: tuple[int, int, int] = (220, 10, 10), kind: str = "PNG", size: tuple[int, int] = (48, 40)) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


RED, GREEN = picture(), picture((10, 220, 10), "JPEG")


@contextmanager
def client(model: Colours | None = None, **options: Any) -> Iterator[TestClient]:
    model = model or Colours()
    app = create({"colours": Served("colours", "v1", model)}, **options)
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def problem(response: Any, status: int) -> str:
    """The detail of an error, which has the promised form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and set(body) == {"type", "title", "status", "detail"}
    return str(body["detail"])


# ---- what is answered


def test_an_image_is_answered_as_the_model_answers_it() -> None:
    model = Colours()
    expected = answers.probabilities(model.see(images.load(RED, FACTS.preprocessing)[None]).scores, FACTS)[0]
    with client(model) as c:
        body = c.post("/predict", content=RED, headers={"content-type": "image/png"}).json()
    assert (body["model"], body["version"]) == ("colours", "v1")
    [one] = body["results"]
    assert one["label"] == "red" and one["labels"] == ["red"] and one["error"] is None
    assert one["probabilities"] == pytest.approx(dict(zip(CLASSES, map(float, expected), strict=True)))
    assert one["probability"] == one["probabilities"]["red"] == max(one["probabilities"].values())
    assert list(one["probabilities"].values()) == sorted(one["probabilities"].values(), reverse=True)


def test_several_images_keep_their_order_and_their_names() -> None:
    with client() as c:
        files = [("image", ("r.png", RED)), ("other", ("g.jpg", GREEN)), ("image", ("x.txt", b"no image"))]
        results = c.post("/predict", files=files).json()["results"]
    assert [(r["name"], r["label"]) for r in results] == [("r.png", "red"), ("g.jpg", "green"), ("x.txt", None)]
    assert results[2]["error"].startswith("not an image")
    assert results[0]["error"] is None


def test_only_the_classes_that_are_asked_for() -> None:
    with client() as c:
        [one] = c.post("/predict?top=2", content=GREEN).json()["results"]
        assert one["label"] == "green" == next(iter(one["probabilities"])) and len(one["probabilities"]) == 2
        assert "top" in problem(c.post("/predict?top=0", content=GREEN), 422)


def test_models_are_chosen_by_name() -> None:
    other = Colours(facts=ModelFacts(**{f: getattr(FACTS, f) for f in FACTS.__slots__} | {"classes": ("a", "b", "c")}))
    both = {"one": Served("one", "1", Colours()), "two": Served("two", "2", other)}
    with TestClient(create(both)) as c:
        assert c.post("/predict", content=RED).json()["model"] == "one"
        named = c.post("/models/two/predict", content=RED).json()
        assert (named["model"], named["version"], named["results"][0]["label"]) == ("two", "2", "a")
        assert [m["name"] for m in c.get("/models").json()["models"]] == ["one", "two"]
        assert c.get("/models/two").json()["classes"] == ["a", "b", "c"]
        assert "one, two" in problem(c.post("/models/three/predict", content=RED), 404)
        problem(c.get("/models/..%2f..%2fetc"), 404)


def test_health_readiness_limits_and_metrics() -> None:
    with client(limits=Limits(images=7)) as c:
        assert c.get("/health").text == c.get("/ready").text == "ok\n"
        assert c.get("/limits").json()["images"] == 7
        c.post("/predict", content=RED)
        c.post("/predict", content=b"nothing of the kind")
        text = c.get("/metrics").text
    assert 'topwork_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'topwork_requests_total{route="/predict",status="422"} 1.0' in text
    assert 'topwork_images_total{model="colours",outcome="answered"} 1.0' in text
    assert 'topwork_images_total{model="colours",outcome="unusable"} 1.0' in text
    assert 'topwork_images_waiting{model="colours"} 0.0' in text


def test_before_it_has_begun_it_is_not_ready() -> None:
    app = create({"colours": Served("colours", "v1", Colours())})
    assert "any model" in problem(TestClient(app).get("/ready"), 503)


def test_every_answer_tells_browsers_to_run_nothing_else() -> None:
    with client() as c:
        for path in ("/", "/page.js", "/page.css", "/models", "/nothing"):
            headers = c.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


def test_the_page_asks_nobody_else() -> None:
    with client() as c:
        page = c.get("/").text + c.get("/page.css").text + c.get("/page.js").text
    outside = set(re.findall(r"https?://[\w.]+", page)) - {"http://www.w3.org"}  # the name of SVG, not an address
    assert not outside


def test_what_is_like_nothing_that_was_learnt_is_told() -> None:
    with client(knowing()) as c:
        found = {n: c.post("/predict", content=picture(rgb)).json()["results"][0]
                 for n, rgb in [("red", (220, 10, 10)), ("white", (255, 255, 255))]}  # fmt: skip
        assert not found["red"]["unknown"] and found["white"]["unknown"]
        assert found["white"]["unknown_score"] > found["red"]["unknown_score"]
        strict = c.post("/predict?false_alarm=0.5", content=RED).json()["results"][0]
        assert strict["unknown_score"] == pytest.approx(found["red"]["unknown_score"])
        assert "0.001" in problem(c.post("/predict?false_alarm=0.001", content=RED), 422)
    with client() as c:
        one = c.post("/predict", content=RED).json()["results"][0]
        assert one["unknown"] is one["unknown_score"] is None
        assert "false alarms" in problem(c.post("/predict?false_alarm=0.1", content=RED), 422)


def test_sets_grow_with_their_level() -> None:
    with client(knowing()) as c:
        sizes = []
        for level in (0.5, 0.9, 0.99):
            one = c.post(f"/predict?sets={level}", content=picture((150, 140, 0))).json()["results"][0]
            assert one["prediction_set"][0] == one["label"]
            sizes.append(len(one["prediction_set"]))
        assert sizes == sorted(sizes) and sizes[-1] > sizes[0]
        assert c.post("/predict", content=RED).json()["results"][0]["prediction_set"] is None
        assert "0.99" in problem(c.post("/predict?sets=0.999", content=RED), 422)
    with client() as c:
        assert "has none" in problem(c.post("/predict?sets=0.9", content=RED), 422)


def test_a_heat_map_lies_over_the_upright_image() -> None:
    half = Image.new("RGB", (80, 40), (10, 220, 10))
    half.paste((220, 10, 10), (0, 0, 40, 40))
    out = BytesIO()
    half.save(out, "PNG")
    with client() as c:
        one = c.post("/predict?heat_map=true", content=out.getvalue()).json()["results"][0]
    kind, _, data = one["heat_map"].partition(";base64,")
    assert kind == "data:image/jpeg"
    seen = np.asarray(Image.open(BytesIO(b64decode(data)))).astype(float)
    assert seen.shape == (40, 80, 3)
    assert one["label"] == "red"
    warm = seen[..., 0] - seen[..., 2]  # orange speaks for it
    assert warm[12:28, 25:38].mean() > 40 > warm[12:28, 44:55].mean() + 30


def test_training_images_that_are_alike_are_told_without_their_names() -> None:
    app = create({"colours": Served("colours", "v1", Colours(), Remembering())})
    with TestClient(app) as c:
        body = c.post("/predict?nearest=2", content=RED)
        assert "secret" not in body.text
        assert body.json()["results"][0]["nearest"] == [
            {"label": "red", "similarity": 0.9}, {"label": "green", "similarity": 0.5}
        ]  # fmt: skip
        assert c.post("/predict", content=RED).json()["results"][0]["nearest"] is None
    with client() as c:
        assert c.post("/predict?nearest=2", content=RED).json()["results"][0]["nearest"] is None


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"", {}, 400, "no body"),
        (RED, {"content-type": "text/html"}, 415, "text/html"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "boundary"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 400, ""),
        (b"--b\r\n", {"content-type": "multipart/form-data; boundary=b"}, 400, ""),
        (b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\nv\r\n--b--\r\n',
         {"content-type": "multipart/form-data; boundary=b"}, 400, "no files"),
        (b"GIF89a", {}, 422, ""),
        (RED[:70], {}, 422, ""),
        (b"http://169.254.169.254/latest", {}, 422, "not an image"),
        (b"/etc/passwd", {}, 422, "not an image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_its_reason(content: bytes, headers: Any, status: int, said: str) -> None:
    with client() as c:
        assert said in problem(c.post("/predict", content=content, headers=headers), status)
        assert c.post("/predict", content=RED).status_code == 200


def test_too_much_is_refused_by_its_own_limit() -> None:
    few = Limits(request_bytes=20_000, image_bytes=10_000, pixels=10_000, images=2)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(noise).save(out, "PNG")  # 10.9 KB, since noise cannot be packed
    with client(limits=few) as c:
        assert "20,000 bytes" in problem(c.post("/predict", content=bytes(20_001)), 413)
        assert "at most 10,000 are read" in problem(c.post("/predict", content=out.getvalue()), 413)
        assert "at most 10,000" in problem(c.post("/predict", content=picture(size=(101, 100))), 413)
        three = [("image", (f"{i}.png", RED)) for i in range(3)]
        assert "2 images" in problem(c.post("/predict", files=three), 413)
        mixed = c.post("/predict", files=[("a", ("r.png", RED)), ("b", ("big.png", picture(size=(101, 100))))])
        assert [r["error"] is None for r in mixed.json()["results"]] == [True, False]


def test_a_body_of_unstated_length_is_counted_as_it_comes() -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(1000)

    with client(limits=Limits(request_bytes=20_000)) as c:
        assert "20,000 bytes" in problem(c.post("/predict", content=endless()), 413)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    out = BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    with client() as c:
        assert len(out.getvalue()) < 200_000
        assert "too many pixels" in problem(c.post("/predict", content=out.getvalue()), 413)


def test_the_key_is_asked_for_and_the_page_is_not_locked() -> None:
    with client(key="geheim é") as c:
        for headers in ({}, {"x-api-key": "no"}, {"authorization": "Bearer no"}, {"authorization": "geheim"}):
            refused = c.post("/predict", content=RED, headers=headers)
            assert "key" in problem(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        assert problem(c.get("/models"), 401) and problem(c.get("/metrics"), 401)
        assert all(c.get(p).status_code == 200 for p in ("/", "/page.js", "/health", "/ready"))
        right = "geheim é".encode()
        assert c.post("/predict", content=RED, headers={"x-api-key": right}).status_code == 200
        assert c.post("/predict", content=RED, headers={"authorization": b"Bearer " + right}).status_code == 200


def test_another_name_for_this_machine_is_refused() -> None:
    """A page of evil.example that points its own name at 127.0.0.1 must not be able to read answers."""
    with client(hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as c:
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
            problem(c.get("/models", headers={"host": host}), 421)
        for host in ("localhost", "127.0.0.1:8000", "[::1]:80", "LOCALHOST:1"):
            assert c.get("/models", headers={"host": host}).status_code == 200


def test_a_model_that_fails_is_a_500_and_the_next_one_is_answered() -> None:
    model = Colours()
    with client(model) as c:
        model.fails = True
        assert "log" in problem(c.post("/predict", content=RED), 500)
        model.fails = False
        assert c.post("/predict", content=RED).status_code == 200
        assert 'topwork_images_waiting{model="colours"} 0.0' in c.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    model = Colours()
    with client(model, limits=Limits(answer_seconds=1.0)) as c:
        model.go_on.clear()
        assert "within 1 s" in problem(c.post("/predict", content=RED), 504)
        model.go_on.set()
        assert c.post("/predict", content=RED).status_code == 200


def test_a_full_queue_says_so_at_once() -> None:
    """Two of eight have room; the other six are told so while these still wait."""
    model = Colours()
    with client(model, limits=Limits(waiting=2)) as c, ThreadPoolExecutor(8) as pool:
        model.go_on.clear()
        asked = [pool.submit(c.post, "/predict", content=RED) for _ in range(8)]
        refused = [f.result() for f in itertools.islice(as_completed(asked), 6)]
        for r in refused:
            assert "waiting" in problem(r, 503) and r.headers["retry-after"] == "1"
        assert "no room" in problem(c.get("/ready"), 503)
        model.go_on.set()
        assert sorted(f.result().status_code for f in asked) == [200, 200, *[503] * 6]
        assert c.post("/predict", content=RED).status_code == 200
        assert c.get("/ready").status_code == 200


def test_too_many_requests_and_too_many_bytes_of_all_are_refused_before_they_are_read() -> None:
    with client(limits=Limits(requests=0)) as c:
        assert "requests are under way" in problem(c.post("/predict", content=RED), 503)
        assert c.get("/health").status_code == 200
    with client(limits=Limits(held_bytes=100)) as c:
        assert "bytes are being worked on" in problem(c.post("/predict", content=RED), 503)


def held(app: Any) -> tuple[int, int]:
    return app.requests, app.held


def test_what_a_request_held_is_free_again_however_it_ends() -> None:
    app = create({"colours": Served("colours", "v1", Colours())}, limits=Limits(request_bytes=2000))
    with TestClient(app, raise_server_exceptions=False) as c:
        for content in (RED, b"", b"x" * 1999, b"x" * 5000, RED[:30]):
            c.post("/predict", content=content)
            assert held(app) == (0, 0)


# ---- batches


def test_what_waits_while_the_model_computes_goes_in_together() -> None:
    model = Colours()
    with client(model) as c, ThreadPoolExecutor(9) as pool:
        model.batches.clear()
        model.go_on.clear()
        asked = [pool.submit(c.post, "/predict", content=GREEN if i % 2 else RED) for i in range(9)]
        until(lambda: 'topwork_images_waiting{model="colours"} 9.0' in c.get("/metrics").text)
        model.go_on.set()
        found = [f.result() for f in asked]
    assert [r.json()["results"][0]["label"] for r in found] == ["red", "green"] * 4 + ["red"]
    assert sum(model.batches) == 9
    assert len(model.batches) < 9


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, half a minute at most."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def batched(images_: int, most: int) -> tuple[list[int], list[float]]:
    model, seen = Colours(), []

    async def all_of_them() -> list[float]:
        told: list[Batch] = []
        batcher = Batcher(model.see, room=100, most=most, told=told.append)
        pixels = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(images_)]
        found = await asyncio.gather(*(batcher.see(p) for p in pixels))
        await batcher.close()
        seen.extend(b.images for b in told)
        return [float(f.pooled[0, 0]) for f in found]

    values = asyncio.run(all_of_them())
    assert seen == model.batches
    return model.batches, values


@pytest.mark.parametrize("most", [1, 3, 8])
def test_everybody_gets_the_own_answer_whatever_the_batches(most: int) -> None:
    sizes, values = batched(10, most)
    assert values == pytest.approx([i / 255 for i in range(10)])
    assert sum(sizes) == 10 and max(sizes) <= most


def test_places_are_counted() -> None:
    async def counted() -> None:
        batcher = Batcher(Colours().see, room=3)
        batcher.take(3)
        with pytest.raises(FullError):
            batcher.take(1)
        batcher.give_back(2)
        batcher.take(2)
        assert batcher.taken == 3

    asyncio.run(counted())


def test_whoever_gave_up_waiting_is_not_computed() -> None:
    model = Colours()

    async def some_give_up() -> None:
        batcher = Batcher(model.see, room=9)
        pixels = np.zeros((4, 4, 3), dtype=np.uint8)
        model.go_on.clear()
        first = asyncio.create_task(batcher.see(pixels))
        while not model.batches:  # until it is being computed
            await asyncio.sleep(0.01)
        later = [asyncio.create_task(batcher.see(pixels)) for _ in range(3)]
        await asyncio.sleep(0)  # they wait
        for task in later[:2]:
            task.cancel()
        await asyncio.sleep(0)  # and two no longer do
        model.go_on.set()
        await first
        await later[2]
        await batcher.close()

    asyncio.run(some_give_up())
    assert model.batches == [1, 1]


# ---- over a real connection


@contextmanager
def listening(model: Colours | None = None, learnt: Learnt | None = None, **options: Any) -> Iterator[tuple[str, int]]:
    """The server on a port of its own, in a thread."""
    app = create({"colours": Served("colours", "v1", model or Colours(), learnt)}, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=run._Timed, ws="none", log_level="critical",
                            lifespan="on", timeout_graceful_shutdown=5)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield server.servers[0].sockets[0].getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def head(length: int, more: str = "") -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def answer_of(connection: socket.socket) -> bytes:
    connection.settimeout(10)
    found = b""
    while block := connection.recv(65536):
        found += block
    return found


def test_a_client_that_trickles_is_sent_away_and_others_do_not_notice() -> None:
    with listening(limits=Limits(read_seconds=1.5)) as at, socket.create_connection(at) as slow:
        slow.sendall(head(len(RED)))
        slow.sendall(RED[:10])
        assert httpx.post(f"http://{at[0]}:{at[1]}/predict", content=RED).status_code == 200
        assert answer_of(slow).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 1.5)
    with listening() as at, socket.create_connection(at) as slow, socket.create_connection(at) as silent:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: loc")
        assert answer_of(slow).startswith(b"HTTP/1.1 408 ")
        assert b"200" not in answer_of(silent)
        assert httpx.get(f"http://{at[0]}:{at[1]}/health").status_code == 200


def test_a_client_that_hangs_up_leaves_nothing_behind() -> None:
    model = Colours()
    with listening(model) as at:
        for cut in (0, 10, len(RED)):
            with socket.create_connection(at) as gone:
                gone.sendall(head(len(RED)) + RED[:cut])
        url = f"http://{at[0]}:{at[1]}"
        until(lambda: "topwork_requests_under_way 0.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.post(f"{url}/predict", content=RED).status_code == 200


def test_one_connection_asks_again_after_a_refusal() -> None:
    with listening(limits=Limits(images=1)) as at, httpx.Client(base_url=f"http://{at[0]}:{at[1]}") as c:
        for _ in range(3):
            assert c.post("/predict", content=b"no").status_code == 422
            assert c.post("/models/none/predict", content=RED).status_code == 404
            assert c.post("/predict", content=RED).status_code == 200


def test_what_was_taken_is_answered_before_it_stops() -> None:
    model = Colours()
    with ThreadPoolExecutor(1) as pool:
        with listening(model) as at:
            model.batches.clear()
            model.go_on.clear()
            asked = pool.submit(httpx.post, f"http://{at[0]}:{at[1]}/predict", content=RED, timeout=60)
            until(lambda: bool(model.batches))
            threading.Timer(0.3, model.go_on.set).start()  # when it has been told to stop
        assert asked.result().json()["results"][0]["label"] == "red"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{at[0]}:{at[1]}/health")


# ---- whatever is sent


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, len(GREEN) - 1), st.binary(max_size=9)).map(
        lambda t: GREEN[: t[0]] + t[1] + GREEN[t[0] + len(t[1]) :])),
    kind=st.sampled_from(["image/jpeg", "", "multipart/form-data; boundary=x", "application/json", "image/svg+xml"]),
)  # fmt: skip
def test_nothing_that_is_sent_makes_it_fail(steady: TestClient, body: bytes, kind: str) -> None:
    response = steady.post("/predict", content=body, headers={"content-type": kind} if kind else {})
    assert response.status_code in {200, 400, 413, 415, 422}
    if response.status_code != 200:
        problem(response, response.status_code)


@pytest.fixture(scope="module")
def steady() -> Iterator[TestClient]:
    with client() as c:
        yield c


def test_the_document_names_every_status_that_is_sent() -> None:
    app = create({"colours": Served("colours", "v1", Colours())})
    paths = openapi(app)["paths"]
    assert set(paths["/predict"]["post"]["responses"]) == {
        str(s) for s in (200, *(400, 401, 404, 408, 413, 415, 422, 500, 503, 504))
    }
    assert paths["/predict"]["post"]["requestBody"]["content"].keys() >= {"image/jpeg", "multipart/form-data"}
    example = paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert json.dumps(example)


# ---- which models


def test_models_are_called_as_their_runs(tmp_path: Any) -> None:
    load: Callable[[Any], Any] = lambda folder: Colours()  # noqa: E731
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "model.json").write_text(name)
    found = run.named([tmp_path / "a", tmp_path / "b" / "model", f"third={tmp_path / 'a'}"], load)
    assert list(found) == ["a", "b", "third"]
    assert found["a"].version == found["third"].version != found["b"].version
    with pytest.raises(UsageError, match="two models are called a"):
        run.named([tmp_path / "a", tmp_path / "a" / "model"], load)
    with pytest.raises(UsageError, match="slash"):
        run.named([f"x/y={tmp_path / 'a'}"], load)
    with pytest.raises(UsageError, match="no model"):
        run.named([], load)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="--port 0"):
        run.serve(["nothing"], lambda _: pytest.fail("was loaded"), port=taken.getsockname()[1])
    with pytest.raises(UsageError, match=r"--host no\.such\.name\.invalid"):
        run.serve(["nothing"], lambda _: pytest.fail("was loaded"), host="no.such.name.invalid", port=0)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    async def accepted() -> int:
        found: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, w: found.set_result(w), sock=run._listening("127.0.0.1", 0))
        _, mine = await asyncio.open_connection(*server.sockets[0].getsockname())
        theirs = await found
        switched_off: int = theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for writer in (mine, theirs):
            writer.close()
            await writer.wait_closed()
        server.close()
        return switched_off

    assert asyncio.run(accepted()) != 0


def test_a_guard_lets_through_what_is_no_request() -> None:
    assert {"/", "/health"} <= guard.OPEN


# ---- what the document promises

schema = schemathesis.openapi.from_asgi(
    "/openapi.json", create({"colours": Served("colours", "v1", Colours())}, limits=Limits(images=3))
)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_document_is_kept_whatever_is_asked(case: Any) -> None:
    """Requests made from the OpenAPI document, valid and not: no 500, and every answer as the document says."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])  # made-up bytes are no images, and told so


# ---- the container


def test_the_container_is_built_from_what_is_there() -> None:
    """No engine is at hand to build it: what it names must exist, and its entry be a command with such options."""
    root = Path(__file__).parents[1]
    text = (root / "docker" / "Dockerfile").read_text()
    ignored = (root / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        *sources, _ = line.split()
        assert all((root / s).exists() and s not in ignored for s in sources), line
    runtime = tomllib.loads((root / "runtime" / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:runtime|topwork-runtime)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= runtime["optional-dependencies"].keys()
    entry, models = (json.loads(m) for m in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.+\])$", text, re.M))
    made = typer.main.get_command(cli.app).commands["serve"].make_context("serve", [*entry[2:], *models])  # type: ignore[attr-defined]
    assert entry[:2] == ["topwork", "serve"]
    assert made.params["host"] == "0.0.0.0" and made.params["runs"] == models
    port = re.search(r"EXPOSE (\d+)", text)
    assert port is not None and int(port[1]) == made.params["port"]


def test_the_small_distribution_asks_for_what_the_server_needs() -> None:
    root = Path(__file__).parents[1]
    small = tomllib.loads((root / "runtime" / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    whole = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(whole["serve"]) | {"safetensors>=0.4.3"} == set(small["serve"])
