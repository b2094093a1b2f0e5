"""How keys stand at one ingress, as Ray metrics."""

from dataclasses import asdict

from ray.serve import metrics

from deployments.contracts.usage import COUNTED, Report
from deployments.exported import Gauges, Total


class KeyMetrics:
    """`tcd_key_*`, by the key's name: what each was given here. The sum over all ingresses and
    workers is that of the service. To be made inside a replica."""

    def __init__(self) -> None:
        self._requests = Total("tcd_key_requests", "requests by how they ended", ("key", "outcome"))
        self._images = Total("tcd_key_images", "images made", ("key",))
        self._work = Total("tcd_key_work", "UNet pixel-steps", ("key",))
        self._running = Gauges("tcd_key_running", "images in the service", ("key",))
        self._waiting = Gauges("tcd_key_waiting", "images that wait at the ingress", ("key",))
        self._faulty = metrics.Gauge(
            "tcd_keys_config_errors", "1: the file of keys is wrong, an older one in force"
        )

    def show(self, report: Report, faulty: bool) -> None:
        """How they stand now. `faulty`: their file is wrong."""
        for name, key in report.items():
            totals = asdict(key.totals)
            for outcome in COUNTED:
                self._requests.show(totals[outcome], {"key": name, "outcome": outcome})
            self._images.show(key.totals.images, {"key": name})
            self._work.show(key.totals.work, {"key": name})
        self._running.show({(name,): key.running for name, key in report.items()})
        self._waiting.show({(name,): key.waiting for name, key in report.items()})
        self._faulty.set(int(faulty))
