"""Metrics for Prometheus: requests by outcome, their durations, the queue, and the weights in use."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=SECONDS)
        outcomes = "Requests answered, by outcome (ok or an error's code)."
        self.requests = counter("lightwam_requests", outcomes, ["protocol", "outcome"])
        self.seconds = seconds("lightwam_request_seconds", "From a complete request to its answer.", ["protocol"])
        self.infer = seconds("lightwam_infer_seconds", "The model's pass, counted for each of its requests.")
        requests = "Requests in a pass, counted for each of them."
        self.batch_size = Histogram("lightwam_requests_together", requests, buckets=BATCH_SIZES, registry=registry)
        self.waiting = gauge("lightwam_requests_waiting", "Requests that wait for the model.")
        self.pass_seconds = gauge("lightwam_thinking_seconds", "How long the current pass has been running.")
        self.clients = gauge("lightwam_clients", "Open connections, by protocol.", ["protocol"])
        self.step = gauge("lightwam_checkpoint_step", "Training step of the weights.")
        self.reloads = counter("lightwam_reloads", "Newer checkpoints, by outcome.", ["outcome"])

    def text(self) -> bytes:
        """Return the metrics in Prometheus' exposition format."""
        return generate_latest(self.registry)
