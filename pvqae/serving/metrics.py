"""What Prometheus sees of one service; every service has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Labels have few values each: clients can't make new ones."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("pvqae_requests", "Requests answered", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "pvqae_request_seconds", "Seconds from request to answer", ["endpoint"], buckets=SECONDS, registry=own
        )
        self.scoring = Histogram("pvqae_scoring_seconds", "Seconds of one image", buckets=SECONDS, registry=own)
        self.images = Counter("pvqae_images", "Images scored", registry=own)
        self.defects = Counter("pvqae_defects", "Images above the threshold", registry=own)
        self.errors = Counter("pvqae_errors", "Requests or images without a score", ["reason"], registry=own)
        self.waiting = Gauge("pvqae_waiting", "Requests that wait for scores, running ones included", registry=own)
        self.ready = Gauge("pvqae_ready", "1 when a model is loaded", registry=own)
        self.model = Gauge(
            "pvqae_model_info", "1 for the model that answers", ["model", "version", "bundle_sha256"], registry=own
        )
        self.loads = Counter("pvqae_reloads", "Attempts to load a version, by outcome", ["outcome"], registry=own)
        for outcome in ("loaded", "rejected", "unreachable"):
            self.loads.labels(outcome)  # shown from the start: an alert on its growth needs the zero

    def text(self) -> bytes:
        return generate_latest(self.registry)
