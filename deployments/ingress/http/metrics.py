"""What `/metrics` shows, in Prometheus text: this ingress replica, and every engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from ray.serve import metrics as ray_metrics

from deployments.contracts.cards import Availability
from deployments.contracts.figures import (
    AVAILABILITY,
    ENGINE_HELP,
    MAPS_HELP,
    NAMES_ERROR,
    SECONDS,
    JobFigures,
    MapFigures,
    ModelFigures,
    states,
)
from deployments.contracts.usage import KeyUsage
from deployments.ingress.http.refusals import Said

CONTENT_TYPE = CONTENT_TYPE_LATEST
ERRORS = "answers that were errors, and streams that ended with one, by its code"
Figures = Mapping[str, ModelFigures]


class Metrics:
    """Counts requests, and renders them with the engines' figures.

    What it counts is exported by the node, too, as Ray metrics.
    """

    def __init__(self) -> None:
        self._exported = ray_metrics.Counter(
            "tcd_http_requests", "HTTP answers", cast(tuple[str], ("route", "status"))
        )  # Ray's annotation allows one key only
        self._exported_seconds = ray_metrics.Histogram(
            "tcd_http_request_seconds", "time to the end of the answer", list(SECONDS), ("route",)
        )
        self._exported_errors = ray_metrics.Counter(
            "tcd_http_errors", ERRORS, cast(tuple[str], ("route", "status", "code"))
        )
        self._registry = CollectorRegistry()
        self._errors = Counter(
            "tcd_http_errors", ERRORS, ["route", "status", "code"], registry=self._registry
        )
        self._requests = Counter(
            "tcd_http_requests", "HTTP answers", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tcd_http_request_seconds",
            "time to the end of the answer",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )

    def count(self, route: str, status: int, seconds: float, error: Said | None = None) -> None:
        """One answer has ended. `error`: what it said went wrong."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._exported.inc(tags={"route": route, "status": str(status)})
        self._exported_seconds.observe(seconds, tags={"route": route})
        if error is not None:
            said = {"route": route, "status": str(error.status), "code": error.code}
            self._errors.labels(**said).inc()
            self._exported_errors.inc(tags=said)

    def render(
        self,
        figures: Figures,
        maps: MapFigures,
        jobs: JobFigures | None,
        keys: Sequence[KeyUsage] = (),
        keys_faulty: bool = False,
        moderated: Mapping[tuple[str, str], int] | None = None,
        models: Mapping[str, Availability] | None = None,
        *,
        names_faulty: bool = False,
    ) -> bytes:
        """Prometheus text.

        Args:
            jobs: `None`: their storage does not answer.
            keys_faulty: the file of keys is wrong, and an older one in force.
            moderated: pictures that were checked here, by kind and outcome; `None`: nothing is
                said of them.
            models: what they are doing, by name; `None`: nothing is known.
            names_faulty: newer names of models are refused.
        """
        others = CollectorRegistry()
        others.register(_Engines(figures))
        others.register(_Models(models or {}, names_faulty))
        others.register(_Maps(maps))
        others.register(_Jobs(jobs))
        others.register(_Keys(keys, keys_faulty))
        if moderated is not None:
            others.register(_Moderated(moderated))
        return generate_latest(self._registry) + generate_latest(others)


class _Engines:
    """A collector over one look at the engines."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        labels = ["model", "replica"]
        for name, text in ENGINE_HELP.items():
            shown = f"tcd_engine_{name}"
            family = (
                CounterMetricFamily(shown.removesuffix("_total"), text, labels=labels)
                if name.endswith("_total")
                else GaugeMetricFamily(shown, text, labels=labels)
            )
            for model, figures in self._figures.items():
                for engine in figures.engines:
                    family.add_metric([model, engine.replica], getattr(engine, name))
            yield family
        ages = GaugeMetricFamily(
            "tcd_engine_figures_age_seconds",
            "how long ago the replicas of a model said these things",
            labels=["model"],
        )
        for model, figures in self._figures.items():
            ages.add_metric([model], figures.age_s)
        yield ages


class _Models:
    """A collector over what the models are doing."""

    def __init__(self, models: Mapping[str, Availability], faulty: bool) -> None:
        self._models = models
        self._faulty = faulty

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "tcd_model_availability", AVAILABILITY, labels=["model", "state"]
        )
        for place, value in states(self._models).items():
            family.add_metric(place, value)
        yield family
        yield GaugeMetricFamily("tcd_names_config_error", NAMES_ERROR, int(self._faulty))


class _Maps:
    """A collector over one look at the map store."""

    def __init__(self, maps: MapFigures) -> None:
        self._maps = maps

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        maps = self._maps
        for name, counts in (
            ("computed_total", maps.computed_total),
            ("reused_total", maps.reused_total),
        ):
            shown = f"tcd_maps_{name}".removesuffix("_total")
            family = CounterMetricFamily(shown, MAPS_HELP[name], labels=["preprocessor"])
            for preprocessor, count in counts.items():
                family.add_metric([preprocessor], count)
            yield family
        yield GaugeMetricFamily("tcd_maps_stored", MAPS_HELP["stored"], maps.stored)
        yield GaugeMetricFamily(
            "tcd_maps_stored_bytes", MAPS_HELP["stored_bytes"], maps.stored_bytes
        )


class _Jobs:
    """A collector over one look at the jobs."""

    def __init__(self, jobs: JobFigures | None) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "tcd_jobs_storage_up", "1: the storage of jobs answers", int(self._jobs is not None)
        )
        if self._jobs is None:
            return
        standing = GaugeMetricFamily("tcd_jobs", "jobs that are kept", labels=["kind", "status"])
        for labels, count in self._jobs.standing.items():
            standing.add_metric(labels, count)
        yield standing
        for name, text, by_kind in (
            ("stored_bytes", "size of their pictures and results", self._jobs.kept_bytes),
            ("oldest_queued_seconds", "how long the oldest has waited", self._jobs.waiting_s),
        ):
            family = GaugeMetricFamily(f"tcd_jobs_{name}", text, labels=["kind"])
            for kind, value in by_kind.items():
                family.add_metric([kind], value)
            yield family


class _Keys:
    """A collector over one look at the keys: their totals at all ingresses together."""

    def __init__(self, keys: Sequence[KeyUsage], faulty: bool) -> None:
        self._keys = keys
        self._faulty = faulty

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        requests = CounterMetricFamily(
            "tcd_key_requests", "requests by how they ended", labels=["key", "outcome"]
        )
        images = CounterMetricFamily("tcd_key_images", "images made", labels=["key"])
        work = CounterMetricFamily("tcd_key_work", "UNet pixel-steps", labels=["key"])
        running = GaugeMetricFamily("tcd_key_running", "images in the service", labels=["key"])
        waiting = GaugeMetricFamily(
            "tcd_key_waiting", "images that wait at the ingress", labels=["key"]
        )
        for usage in self._keys:
            name = [usage.key]
            for outcome, count in usage.requests.model_dump().items():
                requests.add_metric([usage.key, outcome], count)
            images.add_metric(name, usage.images)
            work.add_metric(name, usage.work)
            running.add_metric(name, usage.running)
            waiting.add_metric(name, usage.waiting)
        yield from (requests, images, work, running, waiting)
        yield GaugeMetricFamily(
            "tcd_keys_config_errors",
            "1: the file of keys is wrong, an older one in force",
            int(self._faulty),
        )


class _Moderated:
    """A collector over the pictures that were checked."""

    def __init__(self, counts: Mapping[tuple[str, str], int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "tcd_moderated", "pictures that were checked", labels=["picture", "outcome"]
        )
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family
