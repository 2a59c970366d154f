"""What the server counts, for Prometheus: requests by outcome, how long they took, who waits, which weights answer."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOGETHER = (1, 2, 4, 8, 16, 32)


class Metrics:
    """A registry of its own, so that two servers in a process do not share numbers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lightwam_requests", "Requests answered, by outcome (ok or an error's code).",
                                ["protocol", "outcome"], registry=registry)  # fmt: skip
        self.seconds = Histogram("lightwam_request_seconds", "From a whole request to its answer.", ["protocol"],
                                 buckets=SECONDS, registry=registry)  # fmt: skip
        self.infer = Histogram("lightwam_infer_seconds", "The pass of the model, counted at each of its requests.",
                               buckets=SECONDS, registry=registry)  # fmt: skip
        self.together = Histogram("lightwam_requests_together", "Requests of one pass, counted at each of them.",
                                  buckets=TOGETHER, registry=registry)  # fmt: skip
        self.waiting = Gauge("lightwam_requests_waiting", "Requests that wait for the model.", registry=registry)
        self.thinking = Gauge("lightwam_thinking_seconds", "How long the pass that runs now has been running.",
                              registry=registry)  # fmt: skip
        self.clients = Gauge("lightwam_clients", "Open connections, by protocol.", ["protocol"], registry=registry)
        self.step = Gauge("lightwam_checkpoint_step", "Training step of the weights that answer.", registry=registry)
        self.reloads = Counter("lightwam_reloads", "Newer checkpoints, by outcome.", ["outcome"], registry=registry)

    def text(self) -> bytes:
        """The Prometheus exposition format."""
        return generate_latest(self.registry)
