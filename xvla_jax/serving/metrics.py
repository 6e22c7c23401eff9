"""Counters for ``/metrics`` in Prometheus' text format; no label holds a client's text."""

from __future__ import annotations

from typing import Final

from xvla_jax.errors import needs

with needs("serve"):
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; each server has its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "xvla_requests", "Requests by door and status.", ["door", "status"], registry=registry
        )
        self.seconds = Histogram(
            "xvla_request_seconds",
            "From the first byte of a request to its answer.",
            ["door"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_seconds = Histogram(
            "xvla_batch_seconds",
            "On the device, stacking included.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_size = Histogram(
            "xvla_batch_size", "Observations of a batch.", registry=registry, buckets=_SIZES
        )
        self.actions = Counter(
            "xvla_chunks", "Chunks of actions by domain.", ["domain"], registry=registry
        )
        self.refused = Counter("xvla_refused", "503 by reason.", ["reason"], registry=registry)
        self.failed = Counter("xvla_failed_batches", "Batches that failed.", registry=registry)
        self.waiting = Gauge("xvla_waiting", "Requests in the queue.", registry=registry)
        self.in_flight = Gauge("xvla_in_flight", "Requests being served.", registry=registry)
        self.sockets = Gauge("xvla_websockets", "Open websockets.", registry=registry)
        self.ready = Gauge("xvla_ready", "1 when requests are taken.", registry=registry)

    def text(self) -> bytes:
        """Returns all counters as Prometheus reads them."""
        return generate_latest(self.registry)
