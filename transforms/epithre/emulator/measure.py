"""Measurements of an image: a fixed list of smooth statistics of its figure and its ground.

The degree to which a pixel belongs to the figure depends on the distance of its colour from a plane fitted to the
border's colours in CIELAB. All steps are smooth, without thresholds, arg-max or hard histogram bins, so a re-encoded or
slightly resized image has nearly the same statistics.

Products use `einsum`, which does not call BLAS: a server calls this code from many threads, and BLAS threads that wait
for each other double the time per image.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .draw import FIGURE_COLOURS, GROUND_COLOURS

Floats = npt.NDArray[np.float32]

SIDE = 96
"""Images are measured at SIDE × SIDE pixels; coordinates are corrected for the aspect ratio."""

_LAYOUT = 4
_PATCH = 48
_CELLS = 12
_ANGLES, _RINGS = 48, 8
# Raster formats only: Pillow's PostScript plugin would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")


class Measured(NamedTuple):
    """The measurements of one image: the statistics for the fitted map, and the colour layout."""

    statistics: Floats
    """float32, (`STATISTICS`,)"""
    layout: Floats
    """float32, (50,): L, a, b of a 4 × 4 grid in units of 100, and the sine and cosine of the aspect"""


def measure(data: bytes) -> Measured:
    """Measure an encoded image as stored; an orientation tag is not applied.

    Raises:
        ValueError: If the bytes cannot be decoded as an image.
    """
    pixels, aspect = _decode(data)
    return _measure(_lab(pixels), aspect)


def _decode(data: bytes) -> tuple[npt.NDArray[np.uint8], float]:
    """Return sRGB pixels, uint8 (SIDE, SIDE, 3), and width / height of the original image."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            aspect = image.width / image.height
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size
            small = _as_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return np.asarray(small), min(8.0, max(0.125, aspect))
    except Exception as error:  # decoders raise many kinds of exceptions
        raise ValueError(f"the bytes cannot be decoded as an image ({type(error).__name__})") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparency over white, 16-bit and float greys scaled by the range of their type."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, np.float64))
        top = 1.0 if image.mode == "F" and values.max(initial=0.0) <= 1.0 else 255.0
        if image.mode.startswith("I"):
            top = 65535.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        return image.getchannel(0).convert("RGB")
    if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


_LINEAR = np.array(
    [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255], np.float32
)
# sRGB to XYZ with the D65 white divided out, transposed for pixels in rows.
_XYZ = (
    np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    / np.array([[0.95047], [1.0], [1.08883]])
).T.astype(np.float32)


def _lab(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Convert sRGB bytes to CIELAB, (…, 3); uses the cube root for all values, because dark colours matter little."""
    roots = np.cbrt(np.einsum("...c,cx->...x", _LINEAR[pixels], _XYZ) + np.float32(0.0005))
    x, y, z = roots[..., 0], roots[..., 1], roots[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _prototypes(colours: dict[str, tuple[int, int, int]]) -> Floats:
    return _lab(np.array(list(colours.values()), np.uint8))


_FIGURE_PROTOTYPES = _prototypes(FIGURE_COLOURS)
_GROUND_PROTOTYPES = _prototypes(GROUND_COLOURS)


def _unit_grid(side: int) -> tuple[Floats, Floats]:
    steps = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(steps, steps)
    return x.astype(np.float32), y.astype(np.float32)


_X, _Y = _unit_grid(SIDE)
_BORDER = np.maximum(np.abs(_X), np.abs(_Y)) > 0.90
_PLANE = np.stack([np.ones_like(_X), _X, _Y], axis=-1)
_TO_PLANE: Floats = np.linalg.pinv(_PLANE[_BORDER].astype(np.float64)).astype(np.float32)

_PX, _PY = _unit_grid(_PATCH)
_TAPER: Floats = np.exp(-(((_PX**2 + _PY**2) / 0.6) ** 2)).astype(np.float32)


def _polar_indices() -> npt.NDArray[np.intp]:
    """Return the index of the patch pixel at each (ring sample, angle)."""
    radii = (np.arange(_RINGS * 3) + 0.5) / (_RINGS * 3)
    turns = np.arange(_ANGLES) / _ANGLES * 2 * math.pi
    x = np.clip(((radii[:, None] * np.cos(turns)) + 1) / 2 * _PATCH, 0, _PATCH - 1).astype(np.intp)
    y = np.clip(((radii[:, None] * np.sin(turns)) + 1) / 2 * _PATCH, 0, _PATCH - 1).astype(np.intp)
    return np.asarray(y * _PATCH + x, np.intp)


_POLAR = _polar_indices()
_BANDS = 10
_ARMS = (2, 4, 6)


def _spectrum_weights() -> Floats:
    """Return soft rings over half the frequency plane, plain and times e^{ikθ}: (1 + 2 · arms, bands, F)."""
    fy = np.fft.fftfreq(_PATCH)[:, None] * _PATCH
    fx = np.fft.rfftfreq(_PATCH)[None, :] * _PATCH
    radius, turn = np.hypot(fx, fy).ravel(), np.arctan2(fy, fx + 0 * fy).ravel()
    centres = np.linspace(1.5, 15.0, _BANDS)
    rings = np.exp(-(((radius[None] - centres[:, None]) / 1.1) ** 2))
    # Columns count twice, for their mirror image, except the one of zero horizontal frequency.
    rings *= np.where((fx + 0 * fy).ravel() > 0, 2.0, 1.0)[None]
    cosines = [rings * np.cos(k * turn) for k in _ARMS]
    sines = [rings * np.sin(k * turn) for k in _ARMS]
    return np.stack([rings, *cosines, *sines]).astype(np.float32)


_SPECTRUM = _spectrum_weights()


def _sample(image: Floats, x: Floats, y: Floats) -> Floats:
    """Sample `image` (SIDE, SIDE, c) bilinearly at unit coordinates; the edge pixels are repeated outside."""
    px = np.clip((x + 1) * (SIDE / 2) - 0.5, 0, SIDE - 1.001)
    py = np.clip((y + 1) * (SIDE / 2) - 0.5, 0, SIDE - 1.001)
    ix, iy = px.astype(np.intp), py.astype(np.intp)
    fx, fy = (px - ix)[..., None], (py - iy)[..., None]
    flat, at = image.reshape(SIDE * SIDE, -1), iy * SIDE + ix
    top = flat[at] * (1 - fx) + flat[at + 1] * fx
    bottom = flat[at + SIDE] * (1 - fx) + flat[at + SIDE + 1] * fx
    sampled: Floats = (top * (1 - fy) + bottom * fy).astype(np.float32)
    return sampled


def _halved(image: Floats) -> Floats:
    """Return the mean of every 2 × 2 pixels."""
    rows = image[::2] + image[1::2]
    halved: Floats = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
    return halved


def _shares(lab: Floats, weights: Floats, prototypes: Floats) -> Floats:
    """Return the share of the weight per prototype; each pixel is assigned softly to the nearest ones."""
    squared = (
        np.einsum("pc,pc->p", lab, lab)[:, None]
        - 2 * np.einsum("pc,qc->pq", lab, prototypes)
        + np.einsum("qc,qc->q", prototypes, prototypes)
    )
    near = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / np.float32(2 * 14.0**2))
    near /= near.sum(axis=1, keepdims=True)
    shares: Floats = np.einsum("p,pq->q", weights, near) / (weights.sum() + np.float32(1e-3))
    return shares


def _moments(lab: Floats, weights: Floats) -> Floats:
    total = weights.sum() + np.float32(1e-3)
    mean = np.einsum("p,pc->c", weights, lab) / total
    spread = np.sqrt(np.einsum("p,pc->c", weights, (lab - mean) ** 2) / total + np.float32(1e-4))
    return np.concatenate([mean, spread])


def _measure(lab: Floats, aspect: float) -> Measured:
    ax, ay = math.sqrt(aspect), 1 / math.sqrt(aspect)
    plane = np.einsum("kp,pc->kc", _TO_PLANE, lab[_BORDER])
    residual = lab - np.einsum("ijk,kc->ijc", _PLANE, plane)
    departure = np.einsum("ijc,ijc->ij", residual, residual) / np.float32(15.0**2)
    mask = (departure**2 / (1 + departure**2)).astype(np.float32)

    # The frame of the figure: its centre, and one size for both directions, computed from its variance.
    firm = mask * mask
    total = float(firm.sum()) + 1e-2
    cx, cy = float((firm * _X).sum()) / total, float((firm * _Y).sum()) / total
    dx, dy = (_X - np.float32(cx)) * np.float32(ax), (_Y - np.float32(cy)) * np.float32(ay)
    vx = float((firm * dx * dx).sum()) / total + 1e-4
    vy = float((firm * dy * dy).sum()) / total + 1e-4
    vxy = float((firm * dx * dy).sum()) / total
    reach = 2.45 * math.sqrt((vx + vy) / 2)
    patch = _sample(
        np.concatenate([lab, mask[..., None]], axis=-1),
        np.float32(cx) + _PX * np.float32(reach / ax),
        np.float32(cy) + _PY * np.float32(reach / ay),
    )
    inside = patch[..., 3]

    coarse, light = _halved(lab).reshape(-1, 3), _halved(firm).reshape(-1)
    # Squared, so that the mixed pixels at the figure's edge hardly count in either.
    behind = _halved((1 - mask) ** 2).reshape(-1)
    figure = _moments(coarse, light)
    statistics = np.concatenate(
        [
            _shares(coarse, light, _FIGURE_PROTOTYPES),
            _shares(coarse, behind, _GROUND_PROTOTYPES),
            figure / 100,
            _moments(coarse, behind) / 100,
            plane.ravel() / 100,
            np.sqrt((residual[_BORDER] ** 2).mean(axis=0) + np.float32(1e-4)) / 10,
            _occupancy(inside),
            _profile(inside),
            np.array(
                [
                    mask.mean(),
                    math.sqrt(vx),
                    math.sqrt(vy),
                    math.log(vx / vy),
                    abs(vxy) / math.sqrt(vx * vy),
                    inside.mean(),
                    float((inside * (1 - inside)).mean()),
                ],
                np.float32,
            ),
            _texture(patch[..., :3], inside, figure),
        ]
    ).astype(np.float32)
    cells = lab.reshape(_LAYOUT, SIDE // _LAYOUT, _LAYOUT, SIDE // _LAYOUT, 3).mean(axis=(1, 3))
    cells = (cells - np.array([50, 0, 0], np.float32)) / 100
    turn = math.atan(math.log(aspect))
    return Measured(statistics, np.concatenate([cells.ravel(), np.array([math.sin(turn), math.cos(turn)], np.float32)]))


def _occupancy(inside: Floats) -> Floats:
    """Return the mask in 12 × 12 cells: its even part and the size of its odd part, both invariant to mirroring."""
    step = _PATCH // _CELLS
    cells = inside.reshape(_CELLS, step, _CELLS, step).mean(axis=(1, 3))
    left, right = cells[:, : _CELLS // 2], cells[:, : _CELLS // 2 - 1 : -1]
    odd = np.sqrt((left - right) ** 2 + np.float32(1e-3))
    return np.concatenate([((left + right) / 2).ravel(), odd.ravel()])


def _profile(inside: Floats) -> Floats:
    """Return the rotation-invariant sizes of the first harmonics around the centre, per ring and overall."""
    polar = inside.reshape(-1)[_POLAR]
    rings = polar.reshape(_RINGS, 3, _ANGLES).mean(axis=1)
    extent = polar.mean(axis=0, keepdims=True)
    waves = np.fft.rfft(np.concatenate([rings, extent]), axis=1)[:, :9] / _ANGLES
    profile: Floats = np.sqrt(np.abs(waves) ** 2 + 1e-4).astype(np.float32).ravel()
    return profile


def _texture(lab: Floats, inside: Floats, figure: Floats) -> Floats:
    """Return the energy of the figure's colour variation per frequency ring, and its strength of 2, 4 or 6 arms."""
    window = inside * _TAPER
    variation = (lab - figure[:3]) * (window / np.float32(100))[..., None]
    mean = variation.sum(axis=(0, 1)) / (window.sum() + np.float32(1e-2))
    variation = variation - window[..., None] * mean
    energy = (np.abs(np.fft.rfft2(variation, axes=(0, 1))) ** 2).sum(axis=-1).astype(np.float32).ravel()
    sums = np.einsum("kbf,f->kb", _SPECTRUM, energy)
    rings, cosines, sines = sums[0], sums[1 : 1 + len(_ARMS)], sums[1 + len(_ARMS) :]
    arms = np.hypot(cosines, sines)
    floor = np.float32(0.02 * _PATCH)
    logs = np.log(rings + floor)
    return np.concatenate([logs, (arms / (rings + floor)).ravel(), (arms.sum(axis=1) / (rings.sum() + floor))]).astype(
        np.float32
    )


STATISTICS = len(_measure(np.zeros((SIDE, SIDE, 3), np.float32), 1.0).statistics)
