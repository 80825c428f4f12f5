"""Draw synthetic images of one figure on an even ground.

The same generator state gives the same image. Tests, the demo and the fit of the emulator's model use these images, so
the model knows only this palette and these shapes.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from .captions import Attributes
from .lexicon import GROUPS

_Colour = tuple[int, int, int]
_Points = Sequence[tuple[float, float]]

FIGURE_COLOURS: dict[str, _Colour] = {
    "red": (216, 38, 40),
    "orange": (246, 134, 28),
    "yellow": (252, 214, 48),
    "green": (40, 146, 70),
    "blue": (36, 84, 214),
    "purple": (128, 56, 180),
    "pink": (246, 116, 176),
    "brown": (116, 70, 40),
    "black": (26, 26, 30),
    "white": (250, 250, 247),
    "grey": (128, 132, 138),
}
GROUND_COLOURS: dict[str, _Colour] = {
    "snow": (236, 242, 250),
    "grey": (158, 162, 168),
    "night": (18, 24, 60),
    "sea": (14, 112, 158),
    "sky": (150, 206, 242),
    "grass": (104, 168, 74),
    "sand": (228, 204, 152),
    "wood": (142, 98, 62),
    "sunset": (244, 156, 92),
    "pink": (248, 196, 210),
    "purple": (122, 88, 172),
    "red": (172, 50, 54),
}
# Pairs that a person could hardly distinguish.
_TOO_CLOSE = {
    ("white", "snow"), ("grey", "grey"), ("black", "night"), ("blue", "sea"), ("green", "grass"),
    ("yellow", "sand"), ("brown", "wood"), ("orange", "sunset"), ("pink", "pink"), ("purple", "purple"),
    ("red", "red"), ("brown", "red"), ("pink", "sunset"), ("grey", "purple"), ("grey", "wood"),
    ("white", "pink"), ("blue", "purple"), ("purple", "night"), ("red", "wood"), ("blue", "night"),
    ("orange", "sand"), ("brown", "night"), ("grey", "sea"), ("purple", "sea"), ("white", "sky"),
    ("black", "wood"), ("white", "sand"),
}  # fmt: skip

_OVERSAMPLING = 4
_DARK: _Colour = (34, 34, 40)


def sample_attributes(rng: np.random.Generator) -> Attributes:
    """Draw a random figure that contrasts with its ground; a bicycle is always plain, because its tubes are thin."""
    shape = _choose(rng, GROUPS["shape"])
    texture = _choose(rng, ("plain", "plain", *GROUPS["texture"][1:]))
    while True:
        colour, ground = _choose(rng, GROUPS["colour"]), _choose(rng, GROUPS["ground"])
        if (colour, ground) not in _TOO_CLOSE:
            break
    return Attributes(colour=colour, shape=shape, texture="plain" if shape == "bicycle" else texture, ground=ground)


def draw_image(rng: np.random.Generator, attributes: Attributes, size: int = 256) -> Image.Image:
    """Draw an RGB image of `size` × `size` pixels; position, scale, tilt and shades vary with the generator."""
    if size < 16:
        raise ValueError(f"size must be at least 16, got {size}")
    colour = _shade(rng, FIGURE_COLOURS[attributes.colour])
    canvas = size * _OVERSAMPLING
    pen = _Pen(
        canvas,
        centre=(0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.06, 0.06)),
        scale=rng.uniform(0.30, 0.39),
        tilt=math.radians(rng.uniform(-10, 10)),
        mirrored=bool(rng.integers(2)),
        colour=colour,
    )
    _TEXTURES[attributes.texture](pen, rng, _second_colour(attributes.colour))
    _SHAPES[attributes.shape](pen, attributes.colour)
    figure, mask = pen.paint.reduce(_OVERSAMPLING), pen.mask.reduce(_OVERSAMPLING)
    image = _ground(rng, attributes.ground, size)
    shadow = Image.new("L", (size, size))
    shadow.paste(mask.point([value * 0.16 for value in range(256)]), (size // 90, size // 50))
    shadow = shadow.filter(ImageFilter.GaussianBlur(size / 60))
    image.paste((0, 0, 0), mask=shadow)
    image.paste(figure, mask=mask)
    return image


class _Pen:
    """Draws in the figure's coordinates, roughly [-1, 1] with y downwards, on an oversampled canvas.

    The paint covers the whole canvas and the mask selects the visible part, so that the averaged edges mix only with
    the image's own background.
    """

    def __init__(
        self,
        canvas: int,
        *,
        centre: tuple[float, float],
        scale: float,
        tilt: float,
        mirrored: bool,
        colour: _Colour,
    ) -> None:
        self.colour = colour
        self.paint = Image.new("RGB", (canvas, canvas), colour)
        self.mask = Image.new("L", (canvas, canvas))
        self._on_paint, self._on_mask = ImageDraw.Draw(self.paint), ImageDraw.Draw(self.mask)
        self._centre = (centre[0] * canvas, centre[1] * canvas)
        self._scale = scale * canvas
        side = -1.0 if mirrored else 1.0
        self._across = (side * math.cos(tilt) * self._scale, -math.sin(tilt) * self._scale)
        self._along = (side * math.sin(tilt) * self._scale, math.cos(tilt) * self._scale)

    def _place(self, points: _Points) -> list[tuple[float, float]]:
        (cx, cy), (ax, ay), (bx, by) = self._centre, self._across, self._along
        return [(cx + ax * x + ay * y, cy + bx * x + by * y) for x, y in points]

    def polygon(self, points: _Points, fill: _Colour | None = None, *, pattern: bool = False) -> None:
        """Fill a polygon with the figure's texture, or with `fill` on top; a pattern does not change the mask."""
        placed = self._place(points)
        if fill is not None:
            self._on_paint.polygon(placed, fill=fill)
        if not pattern:
            self._on_mask.polygon(placed, fill=255)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: _Colour | None = None, *, pattern: bool = False
    ) -> None:
        points = [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 72)[:-1]]
        self.polygon(points, fill, pattern=pattern)

    def disc(self, x: float, y: float, r: float, fill: _Colour | None = None, *, pattern: bool = False) -> None:
        self.oval(x, y, r, r, fill, pattern=pattern)

    def stroke(self, points: _Points, width: float, fill: _Colour | None = None) -> None:
        """Draw a line of the given width with round joints and ends."""
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], fill)
        for x, y in points:
            self.disc(x, y, width / 2, fill)

    def ring(self, x: float, y: float, r: float, width: float, fill: _Colour | None = None) -> None:
        self.stroke([(x + r * math.cos(t), y + r * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 49)], width, fill)


def _choose(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _shade(rng: np.random.Generator, colour: _Colour, spread: float = 7.0) -> _Colour:
    red, green, blue = (round(min(255.0, max(0.0, c + rng.uniform(-spread, spread)))) for c in colour)
    return red, green, blue


def _second_colour(colour: str) -> _Colour:
    """Return the colour of a pattern: cream, or another colour if cream has too little contrast."""
    return {
        "white": (150, 158, 172),
        "black": (112, 114, 120),
        "grey": (66, 68, 74),
        "yellow": (176, 132, 20),
    }.get(colour, (252, 244, 226))


def _plain(pen: _Pen, rng: np.random.Generator, colour: _Colour) -> None:
    del pen, rng, colour


def _striped(pen: _Pen, rng: np.random.Generator, colour: _Colour) -> None:
    angle, period, phase = rng.uniform(0, math.pi), rng.uniform(0.34, 0.42), rng.uniform(0, 1)
    c, s = math.cos(angle), math.sin(angle)
    for i in range(-6, 7):
        low = (i + phase) * period
        corners = [(low, -2.0), (low + 0.4 * period, -2.0), (low + 0.4 * period, 2.0), (low, 2.0)]
        pen.polygon([(c * x - s * y, s * x + c * y) for x, y in corners], colour, pattern=True)


def _dotted(pen: _Pen, rng: np.random.Generator, colour: _Colour) -> None:
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.36, 0.42)
    c, s = math.cos(angle), math.sin(angle)
    fx, fy = rng.uniform(0, 1, 2)
    for i in range(-7, 8):
        for j in range(-7, 8):
            x, y = (i + fx + 0.5 * (j % 2)) * period, (j + fy) * period * 0.87
            pen.disc(c * x - s * y, s * x + c * y, 0.31 * period, colour, pattern=True)


def _checked(pen: _Pen, rng: np.random.Generator, colour: _Colour) -> None:
    angle, side = rng.uniform(-0.25, 0.25), rng.uniform(0.24, 0.29)
    c, s = math.cos(angle), math.sin(angle)
    fx, fy = rng.uniform(0, 1, 2)
    for i in range(-8, 9):
        for j in range(-8, 9):
            if (i + j) % 2:
                x0, y0 = (i + fx) * side, (j + fy) * side
                corners = [(x0, y0), (x0 + side, y0), (x0 + side, y0 + side), (x0, y0 + side)]
                pen.polygon([(c * x - s * y, s * x + c * y) for x, y in corners], colour, pattern=True)


def _circle(pen: _Pen, _: str) -> None:
    pen.disc(0, 0, 0.92)


def _square(pen: _Pen, _: str) -> None:
    pen.polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])


def _triangle(pen: _Pen, _: str) -> None:
    pen.polygon([(0, -0.98), (1.02, 0.78), (-1.02, 0.78)])


def _star(pen: _Pen, _: str) -> None:
    radii = [1.08, 0.44] * 5
    turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    pen.polygon([(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)])


def _heart(pen: _Pen, _: str) -> None:
    pen.polygon(
        [
            (
                16 * math.sin(t) ** 3 / 16,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
            for t in np.linspace(0, 2 * math.pi, 120)[:-1]
        ]
    )


def _crescent(pen: _Pen, _: str) -> None:
    # Two circular arcs between the same end points: the outer around the origin, the inner shifted to the right.
    outer = [(math.cos(t), math.sin(t)) for t in np.linspace(0.75, 2 * math.pi - 0.75, 60)]
    (hx, hy), shift = outer[-1], 0.5
    radius, turn = math.hypot(hx - shift, hy), math.atan2(-hy, hx - shift)
    inner = [(shift + radius * math.cos(t), radius * math.sin(t)) for t in np.linspace(2 * math.pi - turn, turn, 60)]
    pen.polygon([(x + 0.15, y) for x, y in (*outer, *inner)])


def _flower(pen: _Pen, colour: str) -> None:
    for i in range(6):
        pen.disc(0.6 * math.sin(i * math.pi / 3), -0.6 * math.cos(i * math.pi / 3), 0.38)
    pen.disc(0, 0, 0.5)
    pen.disc(0, 0, 0.26, (120, 74, 30) if colour in {"yellow", "orange", "white"} else (250, 208, 60))


def _bicycle(pen: _Pen, _: str) -> None:
    rear, front, crank = (-0.62, 0.32), (0.64, 0.32), (-0.08, 0.34)
    seat, head = (-0.24, -0.3), (0.40, -0.32)
    for x, y in (rear, front):
        pen.ring(x, y, 0.43, 0.10)
        for i in range(4):
            dx, dy = 0.43 * math.cos(i * math.pi / 4 + 0.2), 0.43 * math.sin(i * math.pi / 4 + 0.2)
            pen.stroke([(x - dx, y - dy), (x + dx, y + dy)], 0.02)
        pen.disc(x, y, 0.07)
    pen.stroke([rear, seat, crank, rear], 0.085)
    pen.stroke([seat, head, crank], 0.095)
    pen.stroke([front, head, (0.36, -0.5)], 0.09)
    pen.stroke([(0.24, -0.5), (0.38, -0.54), (0.54, -0.5), (0.56, -0.4)], 0.07, _DARK)
    pen.stroke([seat, (-0.28, -0.44)], 0.07)
    pen.stroke([(-0.44, -0.47), (-0.16, -0.47)], 0.10, _DARK)
    pen.disc(*crank, 0.12)
    pen.stroke([(-0.08, 0.34), (0.04, 0.52)], 0.05, _DARK)
    pen.stroke([(-0.03, 0.53), (0.11, 0.53)], 0.05, _DARK)


def _car(pen: _Pen, _: str) -> None:
    pen.polygon([
        (-1.05, 0.32), (-1.05, -0.02), (-0.98, -0.12), (-0.66, -0.16), (-0.42, -0.5), (-0.3, -0.56),
        (0.3, -0.56), (0.42, -0.5), (0.66, -0.14), (0.98, -0.06), (1.06, 0.06), (1.06, 0.32),
    ])  # fmt: skip
    glass = (206, 228, 240)
    pen.polygon([(-0.5, -0.16), (-0.33, -0.43), (-0.05, -0.43), (-0.05, -0.16)], glass)
    pen.polygon([(0.05, -0.16), (0.05, -0.43), (0.31, -0.43), (0.5, -0.16)], glass)
    for x in (-0.58, 0.58):
        pen.disc(x, 0.34, 0.25, _DARK)
        pen.disc(x, 0.34, 0.11, (196, 198, 204))
    pen.disc(0.97, 0.06, 0.06, (255, 240, 170))


def _house(pen: _Pen, _: str) -> None:
    pen.polygon([(0.42, -0.9), (0.62, -0.9), (0.62, -0.3), (0.42, -0.3)])
    pen.polygon([(0, -1.0), (1.02, -0.12), (-1.02, -0.12)])
    pen.polygon([(-0.78, -0.14), (0.78, -0.14), (0.78, 0.86), (-0.78, 0.86)])
    pen.polygon([(-0.86, -0.15), (0.86, -0.15), (0.86, -0.08), (-0.86, -0.08)], _DARK)
    pen.polygon([(-0.48, 0.86), (-0.48, 0.28), (-0.14, 0.28), (-0.14, 0.86)], (92, 58, 38))
    pen.polygon([(0.16, 0.52), (0.16, 0.16), (0.54, 0.16), (0.54, 0.52)], (255, 236, 170))
    pen.polygon([(0.33, 0.52), (0.33, 0.16), (0.37, 0.16), (0.37, 0.52)], _DARK)
    pen.polygon([(0.16, 0.36), (0.16, 0.32), (0.54, 0.32), (0.54, 0.36)], _DARK)


def _fish(pen: _Pen, _: str) -> None:
    pen.polygon([(-0.45, 0.0), (-1.1, -0.5), (-0.98, 0.0), (-1.1, 0.5)])
    pen.polygon([(-0.15, -0.4), (0.1, -0.78), (0.42, -0.36)])
    pen.polygon([(-0.05, 0.4), (0.05, 0.68), (0.3, 0.36)])
    pen.oval(0.22, 0, 0.86, 0.5)
    pen.disc(0.7, -0.12, 0.11, (255, 255, 255))
    pen.disc(0.72, -0.12, 0.06, _DARK)


def _cat(pen: _Pen, colour: str) -> None:
    tail = [(0.3 + 0.62 * math.sin(t), 0.78 - 0.5 * (1 - math.cos(t))) for t in np.linspace(0, 2.5, 16)]
    pen.stroke([*tail, (0.56, -0.24)], 0.15)
    pen.oval(0, 0.46, 0.46, 0.52)
    pen.oval(-0.24, 0.9, 0.2, 0.11)
    pen.oval(0.2, 0.9, 0.2, 0.11)
    pen.oval(0, -0.38, 0.5, 0.42)
    for side in (-1, 1):
        pen.polygon([(side * 0.48, -0.36), (side * 0.46, -1.02), (side * 0.06, -0.72)])
        pen.polygon([(side * 0.41, -0.64), (side * 0.40, -0.88), (side * 0.23, -0.74)], (244, 176, 176))
        pen.oval(side * 0.2, -0.4, 0.09, 0.11, (250, 250, 240))
        pen.oval(side * 0.2, -0.39, 0.05, 0.09, (90, 90, 96) if colour == "black" else _DARK)
    pen.polygon([(-0.06, -0.24), (0.06, -0.24), (0, -0.17)], (236, 130, 140))


_TEXTURES: dict[str, Callable[[_Pen, np.random.Generator, _Colour], None]] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
}
_SHAPES: dict[str, Callable[[_Pen, str], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "crescent": _crescent,
    "flower": _flower,
    "bicycle": _bicycle,
    "car": _car,
    "house": _house,
    "fish": _fish,
    "cat": _cat,
}


def _ground(rng: np.random.Generator, ground: str, size: int) -> Image.Image:
    """Draw the ground: a light gradient, some grain, and characteristic marks."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    light = rng.uniform(-8, 8) * (x - 0.5) + rng.uniform(-14, -4) * (y - 0.5) - 10 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    shade = np.array(_shade(rng, GROUND_COLOURS[ground], 5.0), np.float32)
    if ground == "sunset":
        shade = shade + np.array([6, -26, 14], np.float32) * (y[..., None] - 0.5)
    elif ground == "sea":
        light = light + 5 * np.sin(2 * np.pi * (13 * y + 0.5 * np.sin(2 * np.pi * (2 * x + rng.uniform()))))
    elif ground == "wood":
        grain = 9 * y + 0.35 * np.sin(2 * np.pi * (x + rng.uniform())) + rng.uniform()
        light = light + 6 * np.sin(2 * np.pi * grain) * np.sin(2 * np.pi * grain * 1.7)
    elif ground == "sand":
        light = light + 3 * np.sin(2 * np.pi * (6 * y + 0.8 * np.sin(2 * np.pi * (x + rng.uniform()))))
    grain_size = 4.0 if ground in {"sand", "grass"} else 1.5
    pixels: npt.NDArray[np.float32] = shade + light[..., None] + rng.normal(0, grain_size, (size, size, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return _with_marks(rng, ground, image)


def _with_marks(rng: np.random.Generator, ground: str, image: Image.Image) -> Image.Image:
    """Add stars, clouds, blades or flakes, small enough to keep the ground even."""
    size = image.width
    marks = Image.new("L", (size * 2, size * 2))
    on = ImageDraw.Draw(marks)
    fill, blur = (255, 255, 255), 0.0
    if ground == "night":
        for x, y, r in zip(*rng.uniform(0, size * 2, (2, 40)), rng.uniform(0.002, 0.006, 40) * size, strict=True):
            on.ellipse((x - r, y - r, x + r, y + r), fill=220)
    elif ground == "snow":
        for x, y, r in zip(*rng.uniform(0, size * 2, (2, 60)), rng.uniform(0.006, 0.016, 60) * size, strict=True):
            on.ellipse((x - r, y - r, x + r, y + r), fill=210)
    elif ground == "sky":
        blur = size / 60
        for x, y in rng.uniform(0, size * 2, (5, 2)):
            for dx, dy, r in ((-0.12, 0.02, 0.07), (0, -0.02, 0.1), (0.13, 0.02, 0.07)):
                cx, cy, q = x + dx * size * 2, y + dy * size * 2, r * size * 2
                on.ellipse((cx - q, cy - q * 0.6, cx + q, cy + q * 0.6), fill=70)
    elif ground == "grass":
        fill = (56, 116, 40)
        for x, y, lean in zip(*rng.uniform(0, size * 2, (2, 150)), rng.uniform(-0.3, 0.3, 150), strict=True):
            on.line((x, y, x + lean * size * 0.08, y - size * 0.07), fill=110, width=max(1, size // 100))
    marks = marks.reduce(2)
    if blur:
        marks = marks.filter(ImageFilter.GaussianBlur(blur))
    image.paste(fill, mask=marks)
    return image
