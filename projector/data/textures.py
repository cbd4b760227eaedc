"""Busy pictures of nothing: occluding, shaded, grainy shapes of all sizes, as photographs look to a tower's patches.

They lend their patches to class evidence (projector/data/evidence.py), so that the model learns to name a
photograph by the evidence and not to take it for a drawing. The "dead leaves" model of natural images: Lee, Mumford
& Huang (2001); Baradad et al. (arXiv 2106.05963) show that towers treat such pictures much as photographs.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def texture(rng: random.Random, size: int) -> Image.Image:
    """One such picture, `size` pixels a side."""
    noise = np.random.default_rng(rng.getrandbits(32))
    palette = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(rng.randint(3, 8))]
    picture = _fractal(noise, size, rng.uniform(0.8, 2.0), palette[0], palette[1])
    for _ in range(rng.randint(5, 40)):
        radius = min(size * 0.5, size * 0.02 * rng.paretovariate(1.1))
        leaf = _fractal(noise, size, rng.uniform(0.5, 2.2), rng.choice(palette), rng.choice(palette))
        mask = Image.new("L", (size, size))
        x, y = rng.uniform(0, size), rng.uniform(0, size)
        corners = rng.randint(3, 12)
        turns = sorted(rng.uniform(0, 2 * np.pi) for _ in range(corners))
        outline = [
            (x + radius * rng.uniform(0.5, 1.3) * np.cos(t), y + radius * rng.uniform(0.5, 1.3) * np.sin(t))
            for t in turns
        ]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        picture.paste(leaf, mask=mask.filter(ImageFilter.GaussianBlur(rng.choice((0.5, 1, 3)))))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.0)))
    grain = noise.normal(0, rng.uniform(1, 12), (size, size, 1))
    light = np.linspace(rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.2), size)[:, None, None]
    pixels = np.asarray(picture, dtype=np.float32) * light + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _fractal(
    noise: np.random.Generator, size: int, slope: float, dark: tuple[int, ...], light: tuple[int, ...]
) -> Image.Image:
    """Two colours mixed by noise whose amplitude falls as frequency to the power of `slope`."""
    side = 64
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1 / side
    field = np.fft.ifft2(np.fft.fft2(noise.normal(size=(side, side))) / frequency**slope).real
    share = (field - field.min()) / (np.ptp(field) + 1e-9)
    mask = Image.fromarray((255 * share).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", (size, size), light), Image.new("RGB", (size, size), dark), mask)
