"""What an image of the emulator shows, and its caption in English or Indonesian. Needs no image library."""

from dataclasses import dataclass
from typing import Literal

from .lexicon import GROUPS

Language = Literal["en", "id"]

_NAMES: dict[Language, dict[str, str]] = {
    "en": {value: value for group in ("colour", "shape", "texture") for value in GROUPS[group]},
    "id": {
        "red": "merah", "orange": "oren", "yellow": "kuning", "green": "hijau", "blue": "biru",
        "purple": "ungu", "pink": "merah muda", "brown": "coklat", "black": "hitam", "white": "putih",
        "grey": "abu-abu",
        "circle": "lingkaran", "square": "persegi", "triangle": "segitiga", "star": "bintang",
        "heart": "hati", "crescent": "bulan sabit", "flower": "bunga", "bicycle": "sepeda", "car": "mobil",
        "house": "rumah", "fish": "ikan", "cat": "kucing",
        "plain": "polos", "striped": "bergaris", "dotted": "berbintik", "checked": "kotak-kotak",
    },
}  # fmt: skip
_PLACES: dict[Language, dict[str, str]] = {
    "en": {
        "snow": "in the snow", "grey": "on a grey background", "night": "at night", "sea": "in the sea",
        "sky": "in the sky", "grass": "on grass", "sand": "on sand", "wood": "on wood", "sunset": "at sunset",
        "pink": "on a pink background", "purple": "on a purple background", "red": "on a red background",
    },
    "id": {
        "snow": "di atas salju", "grey": "dengan latar abu-abu", "night": "di malam hari", "sea": "di laut",
        "sky": "di langit", "grass": "di atas rumput", "sand": "di atas pasir", "wood": "di atas kayu",
        "sunset": "saat senja", "pink": "dengan latar merah muda", "purple": "dengan latar ungu",
        "red": "dengan latar merah",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """The content of one image: a value of each group of `lexicon.GROUPS`."""

    colour: str
    shape: str
    texture: str
    ground: str

    def __post_init__(self) -> None:
        for group, values in GROUPS.items():
            if getattr(self, group) not in values:
                raise ValueError(f"{group} must be one of {', '.join(values)}, got {getattr(self, group)!r}")


def describe(attributes: Attributes, language: Language = "en") -> str:
    """Return the caption of an image: "a red striped cat on grass", "kucing merah bergaris di atas rumput"."""
    names, place = _NAMES[language], _PLACES[language][attributes.ground]
    colour, shape = names[attributes.colour], names[attributes.shape]
    texture = "" if attributes.texture == "plain" else names[attributes.texture]
    if language == "id":
        return " ".join(filter(None, (shape, colour, texture, place)))
    article = "an" if colour[0] in "aeiou" else "a"
    return " ".join(filter(None, (article, colour, texture, shape, place)))


def name_of(group: str, attributes: Attributes, language: Language = "en") -> str:
    """Return the name of an attribute of an image; of the ground, where the figure is: "on grass"."""
    value: str = getattr(attributes, group)
    return _PLACES[language][value] if group == "ground" else _NAMES[language][value]
