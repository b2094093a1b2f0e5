"""Repeated measurements as medians with their spread, and tables in markdown."""

import os
import platform
from collections.abc import Sequence
from statistics import median, quantiles


def spread(values: Sequence[float], digits: int = 2) -> str:
    """ "median (lowest to highest)"."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def quartiles(values: Sequence[float], digits: int = 2) -> str:
    """ "median (first quartile to third quartile)"."""
    first, second, third = quantiles(values)
    return f"{second:.{digits}f} ({first:.{digits}f} to {third:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them stays below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Quotients of measurements that were taken side by side."""
    return [a / b for a, b in zip(over, under, strict=True)]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A markdown table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def machine() -> str:
    """One line on where this runs."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"
