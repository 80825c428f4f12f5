"""Map words to attributes, in English and Indonesian, for the emulator's texts.

An attribute is a value in one of four groups (`GROUPS`). A sentence is split into words, the longest known phrase is
matched first, and every phrase votes for a value of its group. A colour of the background ("latar putih", "on a white
background") votes in the ground group instead.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

GROUPS: Mapping[str, tuple[str, ...]] = {
    "colour": (
        "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
    ),
    "shape": (
        "circle", "square", "triangle", "star", "heart", "crescent",
        "flower", "bicycle", "car", "house", "fish", "cat",
    ),
    "texture": ("plain", "striped", "dotted", "checked"),
    "ground": (
        "snow", "grey", "night", "sea", "sky", "grass",
        "sand", "wood", "sunset", "pink", "purple", "red",
    ),
}  # fmt: skip

GROUND_OF_COLOUR: Mapping[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("sunset",),
    "yellow": ("sand",),
    "green": ("grass",),
    "blue": ("sky", "sea"),
    "purple": ("purple",),
    "pink": ("pink",),
    "brown": ("wood",),
    "black": ("night",),
    "white": ("snow",),
    "grey": ("grey",),
}

# One entry per value: phrases separated by commas, in words as `words_of` splits them.
_COLOURS = {
    "red": """red, reddish, crimson, scarlet, maroon, dark red, merah, merah tua, marun, merah marun,
        kemerahan""",
    "orange": "orange, ginger, oren, oranye, jingga, oranye tua",
    "yellow": """yellow, yellowish, gold, golden, kuning, kuning muda, kuning tua, emas, kuning emas,
        kekuningan""",
    "green": """green, greenish, dark green, light green, lime, lime green, hijau, ijo, hijau tua, hijau
        muda, hijau daun, kehijauan""",
    "blue": """blue, bluish, navy, navy blue, dark blue, light blue, sky blue, biru, biru tua, biru muda,
        biru laut, biru langit, biru dongker, kebiruan""",
    "purple": "purple, violet, lilac, lavender, ungu, ungu tua, ungu muda, lembayung, lila",
    "pink": "pink, pinkish, magenta, light red, merah muda, merah jambu, merahmuda",
    "brown": """brown, brownish, dark brown, light brown, coklat, cokelat, coklat tua, coklat muda,
        kecoklatan""",
    "black": "black, hitam, hitam pekat, kehitaman",
    "white": "white, whitish, putih, putih bersih, keputihan",
    "grey": """grey, gray, greyish, grayish, dark grey, light grey, dark gray, light gray, silver, abu,
        abu abu, kelabu, perak""",
}
_SHAPES = {
    "circle": "circle, circular, round, disc, disk, ball, lingkaran, bulat, bulatan, bundar, bola",
    "square": "square, box, persegi, bujur sangkar, kotak, segi empat, segiempat",
    "triangle": "triangle, triangular, segitiga, segi tiga",
    "star": "star, bintang",
    "heart": "heart, hati, tanda hati, bentuk hati",
    "crescent": "crescent, crescent moon, moon, half moon, bulan, bulan sabit, sabit",
    "flower": "flower, floral, blossom, daisy, rose, bunga, kembang, mawar",
    "bicycle": "bicycle, bike, cycle, pushbike, sepeda",
    "car": "car, automobile, sedan, mobil",
    "house": "house, hut, cottage, rumah, gubuk, pondok",
    "fish": "fish, goldfish, ikan, ikan mas",
    "cat": "cat, kitty, kitten, house cat, feline, kucing, anak kucing",
}
_TEXTURES = {
    "plain": """plain, solid, unpatterned, plain coloured, plain colored, solid coloured, solid colored,
        polos, tanpa motif, tanpa corak""",
    "striped": """striped, stripe, stripy, stripey, lined, bergaris, bergaris garis, garis, garis garis,
        belang, belang belang, loreng, lurik, berlurik""",
    "dotted": """dotted, dot, dotty, spotted, spotty, spot, speckled, polka, polka dot, polka dotted,
        polkadot, berbintik, berbintik bintik, bintik, bintik bintik, bertotol, bertotol totol, totol,
        totol totol, berpolkadot, berpolka dot, titik titik, bertitik, bertitik titik""",
    "checked": """checked, checks, checkered, chequered, checkerboard, chequerboard, chessboard, plaid,
        gingham, kotak kotak, berkotak, berkotak kotak, papan catur""",
}
_GROUNDS = {
    "snow": "snow, snowy, winter, ice, icy, salju, bersalju, musim dingin",
    "grey": """road, street, asphalt, tarmac, concrete, pavement, jalan, jalan raya, jalanan, aspal,
        beton, trotoar""",
    "night": """night, nighttime, night sky, midnight, darkness, in the dark, starry night, starry sky,
        outer space, malam, malam hari, langit malam, tengah malam, langit berbintang, kegelapan, angkasa""",
    "sea": """sea, ocean, underwater, water, lake, laut, lautan, samudra, samudera, danau, bawah laut,
        dasar laut""",
    "sky": "sky, cloud, cloudy, langit, awan, berawan, udara",
    "grass": """grass, grassy, lawn, meadow, pasture, garden, park, rumput, rerumputan, berumput, padang
        rumput, taman, kebun""",
    "sand": "sand, sandy, beach, desert, dune, pasir, berpasir, pantai, padang pasir, gurun, gurun pasir",
    "wood": """wood, wooden, wooden floor, wooden table, soil, mud, kayu, papan kayu, lantai kayu, meja
        kayu, tanah, lumpur""",
    "sunset": "sunset, dusk, sundown, twilight, evening, senja, sore, sore hari, petang, matahari terbenam",
    "red": "brick, brick wall, bata, dinding bata, tembok bata",
}
# Scenes with their usual colour do not vote for a figure's colour: "a white bike under a blue sky" is not a blue bike.
_COLOURED_SCENES = {
    "snow": "white snow, salju putih",
    "grey": "grey road, gray road, grey street, gray street, black asphalt, jalan abu abu, aspal hitam",
    "night": """dark night, black night, dark sky, black sky, malam gelap, malam yang gelap, langit hitam,
        langit gelap""",
    "sea": "blue sea, blue ocean, blue water, laut biru, laut yang biru, lautan biru",
    "sky": "blue sky, langit biru, langit yang biru, langit cerah",
    "grass": """green grass, green lawn, green meadow, green field, rumput hijau, rumput yang hijau,
        padang rumput hijau""",
    "sand": "white sand, yellow sand, golden sand, pasir putih, pasir kuning",
    "wood": "brown wood, brown soil, kayu coklat, kayu cokelat, tanah coklat",
    "sunset": "orange sunset, orange sky, red sunset, langit jingga, langit oranye, senja jingga",
    "red": "red brick, red brick wall, bata merah, dinding bata merah",
}
_TWO_COLOURS = {
    ("blue", "green"): "turquoise, teal, cyan, aqua, toska, tosca, pirus",
    ("black", "white"): "black and white, hitam putih",
    ("red", "white"): "red and white, merah putih",
}
# Known words in a phrase of another meaning: a motorcycle ("sepeda motor") is not a bicycle ("sepeda").
_SOMETHING_ELSE = "sepeda motor, hati hati"

_COLOUR_FOLLOWS = frozenset({"latar", "latarnya", "berlatar", "berlatarkan"})
_COLOUR_PRECEDES = frozenset({"background", "backdrop"})
_UNDERNEATH = frozenset({"on", "against", "upon", "atas", "beralas", "beralaskan"})
# "background putih" is common too; only there does the colour follow.
_INDONESIAN_COLOURS = frozenset(
    {"merah", "oren", "oranye", "jingga", "kuning", "hijau", "biru", "ungu"}
    | {"coklat", "cokelat", "hitam", "putih", "abu", "kelabu"}
)
_FILLERS = frozenset(
    {"a", "an", "the", "is", "of", "with", "its", "and", "very", "pure"}
    | {"colour", "color", "coloured", "colored", "warna", "berwarna", "warnanya"}
    | {"belakang", "belakangnya", "yang", "dan", "adalah", "serba"}
)
_SUFFIXES = ("nya", "ku", "mu", "s", "es")


class _Found(NamedTuple):
    start: int
    end: int
    group: str
    values: tuple[str, ...]


def _phrases() -> dict[tuple[str, ...], tuple[str, tuple[str, ...]]]:
    """Return every known phrase, as a tuple of words → its group ("" for none) and the values it votes for."""
    table: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {}

    def add(phrases: str, group: str, *values: str) -> None:
        table.update({tuple(phrase.split()): (group, values) for phrase in phrases.split(",")})

    groups = {"colour": _COLOURS, "shape": _SHAPES, "texture": _TEXTURES, "ground": _GROUNDS}
    for group, entries in groups.items():
        for value, phrases in entries.items():
            add(phrases, group, value)
    for value, phrases in _COLOURED_SCENES.items():
        add(phrases, "ground", value)
    for values, phrases in _TWO_COLOURS.items():
        add(phrases, "colour", *values)
    add(_SOMETHING_ELSE, "")
    return table


_PHRASES = _phrases()
_KNOWN_WORDS = frozenset(word for phrase in _PHRASES for word in phrase)
_LONGEST = max(map(len, _PHRASES))


def words_of(text: str) -> list[str]:
    """Split a text into words: NFKC-normalised, case-folded, split at all characters but letters, digits and `_`."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def attributes_of(text: str) -> dict[str, dict[str, float]]:
    """Return the attributes in a text, per group: value → share; the shares of a group add up to 1.

    Groups that the text does not mention are absent.

    >>> attributes_of("sepeda merah, latar putih")
    {'colour': {'red': 1.0}, 'shape': {'bicycle': 1.0}, 'ground': {'snow': 1.0}}
    """
    words = [_known_form(word) for word in words_of(text)]
    votes: dict[str, dict[str, float]] = {group: {} for group in GROUPS}
    for found in _moved_to_the_ground(words, list(_find(words))):
        for value in found.values:
            shares = votes[found.group]
            shares[value] = shares.get(value, 0.0) + 1.0 / len(found.values)
    return {
        group: {value: share / sum(shares.values()) for value, share in shares.items()}
        for group, shares in votes.items()
        if shares
    }


def _known_form(word: str) -> str:
    """Return the word, or its stem without a plural or possessive suffix if the stem is a known word."""
    if word in _KNOWN_WORDS:
        return word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and word[: -len(suffix)] in _KNOWN_WORDS:
            return word[: -len(suffix)]
    return word


def _find(words: list[str]) -> Iterator[_Found]:
    start = 0
    while start < len(words):
        for end in range(min(start + _LONGEST, len(words)), start, -1):
            known = _PHRASES.get(tuple(words[start:end]))
            if known is not None:
                if known[0]:
                    yield _Found(start, end, *known)
                start = end
                break
        else:
            start += 1


def _moved_to_the_ground(words: list[str], found: list[_Found]) -> list[_Found]:
    """Return the same phrases, with colours of the background moved to the ground group."""
    by_start = {item.start: item for item in found}
    by_end = {item.end: item for item in found}
    moved: set[_Found] = set()
    dropped: set[_Found] = set()

    def following(position: int) -> _Found | None:
        while position < len(words) and words[position] in _FILLERS:
            position += 1
        return by_start.get(position)

    def preceding(position: int) -> _Found | None:
        while position and words[position - 1] in _FILLERS:
            position -= 1
        return by_end.get(position)

    def colours_a_shape(item: _Found | None) -> bool:
        while item is not None and item.group != "shape":
            item = following(item.end)
        return item is not None

    def take(first: _Found | None, onward: Callable[[_Found], _Found | None]) -> bool:
        """Move the next colour; "plain" on either side of it also refers to the background."""
        plains = []
        if first is not None and first.values == ("plain",):
            plains.append(first)
            first = onward(first)
        if first is None or first.group != "colour":
            return False
        beyond = onward(first)
        if beyond is not None and beyond.values == ("plain",):
            plains.append(beyond)
        moved.add(first)
        dropped.update(plains)
        return True

    def forward(item: _Found) -> _Found | None:
        return following(item.end)

    for position, word in enumerate(words):
        after = following(position + 1)
        if word in _COLOUR_FOLLOWS:
            take(after, forward)
        elif word in _COLOUR_PRECEDES:
            said_after = after is not None and words[after.start] in _INDONESIAN_COLOURS
            if said_after or not take(preceding(position), lambda item: preceding(item.start)):
                take(after, forward)
        elif word in _UNDERNEATH and not colours_a_shape(after):  # "on red", but not "on a red bicycle"
            take(after, forward)
    return [_as_ground(item) if item in moved else item for item in found if item not in dropped]


def _as_ground(item: _Found) -> _Found:
    values = tuple(ground for colour in item.values for ground in GROUND_OF_COLOUR[colour])
    return item._replace(group="ground", values=values)
