"""What the map store did, as Ray metrics."""

from ray.serve import metrics

from deployments.contracts.figures import MAPS_HELP, MapFigures
from deployments.exported import Total


class MapMetrics:
    """`tcd_maps_*`. To be made inside a replica."""

    def __init__(self) -> None:
        labels = ("preprocessor",)
        self._computed = Total("tcd_maps_computed", MAPS_HELP["computed_total"], labels)
        self._reused = Total("tcd_maps_reused", MAPS_HELP["reused_total"], labels)
        self._stored = metrics.Gauge("tcd_maps_stored", MAPS_HELP["stored"])
        self._stored_bytes = metrics.Gauge("tcd_maps_stored_bytes", MAPS_HELP["stored_bytes"])

    def show(self, figures: MapFigures) -> None:
        """As it is now."""
        for total, counts in (
            (self._computed, figures.computed_total),
            (self._reused, figures.reused_total),
        ):
            for preprocessor in figures.computed_total:
                total.show(counts.get(preprocessor, 0), {"preprocessor": preprocessor})
        self._stored.set(figures.stored)
        self._stored_bytes.set(figures.stored_bytes)
