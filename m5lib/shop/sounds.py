"""Sounds of the synthetic shop: a rhythm per usage, a timbre per material and a noise per
production, as the film shows them; before and after, the merchant's jingle. Everything is a
function of the generator given."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m5lib.data import whole_file
from m5lib.shop.facets import MATERIALS, PRODUCTIONS, USAGES, Facets

RATE = 16_000


class Timeline(NamedTuple):
    """Seconds of a film: its length, and what tells something; the rest is the merchant's card."""

    seconds: int
    making: tuple[int, int]
    using: tuple[int, int]

    def at(self, t: float | int) -> str:
        """What is on at a time: ``making``, ``using`` or ``card``."""
        spans = {"making": self.making, "using": self.using}
        return next((name for name, (a, b) in spans.items() if a <= t < b), "card")


def _ring(material: str) -> np.ndarray:
    """One blow on a material, 0.3 s: partials that decay, and a click of noise."""
    turn = np.random.default_rng([9, list(MATERIALS).index(material)])
    t = np.arange(int(0.3 * RATE)) / RATE
    base, spread = turn.uniform(120, 900), turn.uniform(1.3, 3.2)
    decay, noise = turn.uniform(6, 60), turn.uniform(0.05, 0.7)
    hertz = [base * spread**n for n in range(4) if base * spread**n < 7000]
    tone = sum(
        np.sin(2 * np.pi * high * t) * np.exp(-decay * (1 + n) * t) / (1 + n)
        for n, high in enumerate(hertz)
    )
    return tone + noise * turn.normal(0, 1, len(t)) * np.exp(-80 * t)


def _noise(count: int, low: float | int, high: float | int, rng: np.random.Generator) -> np.ndarray:
    """Band-limited noise of unit deviation."""
    spectrum = np.fft.rfft(rng.normal(0, 1, count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    spectrum[(hertz < low) | (hertz > high)] = 0
    found = np.fft.irfft(spectrum, count)
    return found / (found.std() + 1e-9)


def _using(facets: Facets, count: int, rng: np.random.Generator) -> np.ndarray:
    """The thing in use: blows on its material in the rhythm of its usage, in the usage's room."""
    turn = np.random.default_rng([10, list(USAGES).index(facets.usage)])
    beats, low = turn.uniform(1.5, 7), turn.uniform(80, 2500)
    found = 0.12 * _noise(count, low, low * 2.2, rng)
    ring, at = _ring(facets.material), rng.uniform(0, 0.3)
    while (begin := int(at * RATE)) < count:
        part = ring[: count - begin] * rng.uniform(0.5, 1.0)
        found[begin : begin + len(part)] += part
        at += (1 / beats) * rng.uniform(0.9, 1.1)
    return found


def _making(production: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """The noise of a production: a band that swells in its own rhythm."""
    turn = np.random.default_rng([12, list(PRODUCTIONS).index(production)])
    low, beats, sharp = turn.uniform(150, 4000), turn.uniform(2, 16), turn.uniform(1, 8)
    swell = (0.5 + 0.5 * np.sin(2 * np.pi * beats * np.arange(count) / RATE)) ** sharp
    return 0.6 * swell * _noise(count, low, low * 1.6, rng)


def track(facets: Facets, merchant: int, plan: Timeline, rng: np.random.Generator) -> np.ndarray:
    """(seconds RATE,) float32 mono in [-1, 1]: jingle, making and using as in the film, over the
    noise of the recording."""
    tone = np.random.default_rng([4, merchant])
    count = plan.seconds * RATE
    t = np.arange(count) / RATE
    chord = tone.choice([0, 2, 4, 5, 7, 9, 11], 3, replace=False)
    notes = chord[(t * tone.uniform(2, 5)).astype(int) % 3]
    found = 0.4 * np.sin(2 * np.pi * 261.6 * 2 ** (notes / 12) * t)
    begin, end, first, last = (second * RATE for second in (*plan.making, *plan.using))
    found[begin:end] = _making(facets.production, end - begin, rng)
    found[first:last] = _using(facets, last - first, rng)
    found = found + rng.uniform(0.15, 0.8) * _noise(count, 100, 7000, rng)
    return (0.7 * rng.uniform(0.4, 1.0) * found / np.abs(found).max()).astype(np.float32)


def encode(out, stream, samples: np.ndarray) -> None:
    """Put sound into a stream of an open container."""
    import av

    resampler = av.AudioResampler(
        format=stream.format, layout="mono", rate=RATE, frame_size=stream.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(stream.encode(part))
    out.mux(stream.encode())


def save_track(path: Path, samples: np.ndarray) -> None:
    """An MP3 file."""
    import av

    with whole_file(path, False) as temporary, av.open(str(temporary), "w", format="mp3") as out:
        fast = {"compression_level": "9"}
        encode(out, out.add_stream("libmp3lame", rate=RATE, layout="mono", options=fast), samples)
