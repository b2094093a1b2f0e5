"""An engine's figures as Ray metrics, which every node exports to Prometheus."""

from ray.serve import metrics

from deployments.contracts.figures import ENGINE_HELP, SECONDS, EngineFigures
from deployments.exported import Total


class EngineMetrics:
    """`tcd_engine_*`, with the model's name and Serve's own tags. To be made inside a replica."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._gauges: dict[str, metrics.Gauge] = {}
        self._totals: dict[str, Total] = {}
        for name, text in ENGINE_HELP.items():
            shown = f"tcd_engine_{name}"
            if name.endswith("_total"):
                self._totals[name] = Total(shown.removesuffix("_total"), text, ("model",))
            else:
                self._gauges[name] = metrics.Gauge(shown, text, ("model",))
        self._job_seconds = metrics.Histogram(
            "tcd_engine_job_seconds",
            "time from a job's arrival at the replica to its last image",
            list(SECONDS),
            ("model",),
        )

    def publish(self, figures: EngineFigures) -> None:
        """Shows the engine as it is now."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(figures, name), self._tags)
        for name, total in self._totals.items():
            total.show(getattr(figures, name), self._tags)

    def answered(self, seconds: float) -> None:
        """A job has been answered."""
        self._job_seconds.observe(seconds, self._tags)
