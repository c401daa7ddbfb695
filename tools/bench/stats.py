"""Figures of several samples."""

from __future__ import annotations

import statistics


def summary(samples: list[float]) -> dict[str, float]:
    return {
        "min": round(min(samples), 4),
        "median": round(statistics.median(samples), 4),
        "max": round(max(samples), 4),
        "n": len(samples),
    }
