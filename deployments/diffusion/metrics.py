"""An engine's figures as Ray metrics, which every node exports to Prometheus."""

from ray.serve import metrics

from deployments.contracts.figures import ENGINE_HELP, EngineFigures


class EngineMetrics:
    """`tcd_engine_*`, with the model's name and Serve's own tags. To be made inside a replica."""

    def __init__(self, model: str) -> None:
        self._gauges: dict[str, metrics.Gauge] = {}
        self._counters: dict[str, metrics.Counter] = {}
        self._counted: dict[str, int] = {}
        for name, text in ENGINE_HELP.items():
            shown = f"tcd_engine_{name}"
            if name.endswith("_total"):
                counter = metrics.Counter(shown.removesuffix("_total"), text, ("model",))
                counter.set_default_tags({"model": model})
                self._counters[name] = counter
                self._counted[name] = 0
            else:
                gauge = metrics.Gauge(shown, text, ("model",))
                gauge.set_default_tags({"model": model})
                self._gauges[name] = gauge

    def publish(self, figures: EngineFigures) -> None:
        """Shows the engine as it is now."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(figures, name))
        for name, counter in self._counters.items():
            total: int = getattr(figures, name)
            if total > self._counted[name]:
                counter.inc(total - self._counted[name])
                self._counted[name] = total
