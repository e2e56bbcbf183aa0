"""A chart as SVG, written by hand: no plotting library is needed to see where a threshold lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 280, 44, 44, 50, 40
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568")


def threshold_chart(
    title: str,
    axis: str,
    values: Mapping[str, np.ndarray],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    marks: Mapping[str, float],
) -> str:
    """Histograms of the values, curves of shares (0..1) over the same axis, and a dashed line at each threshold.

    values   float (n,) by series       curves   (value, share) points by name       marks   threshold by series
    returns  an SVG document
    """
    every = np.concatenate([np.asarray(v, float) for v in values.values()] or [np.zeros(0)])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    high = max(high, low + 1e-6 * max(1, abs(low)))  # wide enough for 60 bins between two floats
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(title)}</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for value in np.linspace(low, high, 6):
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(axis)}</text>')
    # a curve with a histogram's name is of the same samples
    colour = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(dict.fromkeys([*values, *curves]))}
    for name, series in values.items():
        counts, edges = np.histogram(series, bins=60, range=(low, high))
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            top = y(count / max(1, counts.max()))
            parts.append(
                f'<rect x="{x(left):.1f}" y="{top:.1f}" width="{x(right) - x(left):.1f}" '
                f'height="{y(0) - top:.1f}" fill="{colour[name]}" opacity="0.3"/>'
            )
    for name, points in curves.items():
        path = " ".join(f"{x(value):.1f},{y(share):.1f}" for value, share in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour[name]}" stroke-width="1.6"/>')
    for name, mark in marks.items():
        line = f'x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" y2="{y(0):.1f}"'
        parts.append(f'<line {line} stroke="{colour.get(name, "#000")}" stroke-dasharray="4 3"/>')
    for at, name in enumerate(colour):
        place = f'x="{_LEFT + 8 + 140 * (at % 4)}" y="{_TOP - 16 + 12 * (at // 4)}"'
        parts.append(f'<text {place} fill="{colour[name]}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])
