"""What is counted, and how does Prometheus read it?"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from topwork.serve.batching import Batch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counted:
    """Counters of one application: its own registry, so that two in one process do not meet."""

    MEDIA = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        r = self._all
        self._requests = Counter("topwork_requests", "Requests by route and status", ("route", "status"), registry=r)
        self._seconds = Histogram(
            "topwork_request_seconds", "Seconds from the head of a request to its answer", ("route",), buckets=SECONDS,
            registry=r,
        )  # fmt: skip
        self._images = Counter("topwork_images", "Images by model and outcome", ("model", "outcome"), registry=r)
        self._full = Counter("topwork_full", "Requests refused because too many images waited", ("model",), registry=r)
        self._batch = Histogram(
            "topwork_batch_images", "Images computed together", ("model",), buckets=(1, 2, 4, 8, 16, 32), registry=r
        )
        self._compute = Histogram(
            "topwork_batch_seconds", "Seconds that a batch took the model", ("model",), buckets=SECONDS, registry=r
        )
        self._waiting = Gauge("topwork_images_waiting", "Images under way now", ("model",), registry=r)
        self._under_way = Gauge("topwork_requests_under_way", "Requests under way now", registry=r)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, model: str, outcome: str | None) -> None:
        """An image was answered; `outcome` None: with a class."""
        self._images.labels(model, outcome or "answered").inc()

    def full(self, model: str) -> None:
        """A request was refused for want of room."""
        self._full.labels(model).inc()

    def batch(self, model: str, batch: Batch) -> None:
        """A batch was computed."""
        self._batch.labels(model).observe(batch.images)
        self._compute.labels(model).observe(batch.seconds)

    def text(self, waiting: Mapping[str, int], requests: int) -> bytes:
        """All of it, as Prometheus reads it."""
        for name, count in waiting.items():
            self._waiting.labels(name).set(count)
        self._under_way.set(requests)
        return generate_latest(self._all)
