"""The attributes model: sentences find matching images, and re-encoding hardly changes a vector."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from epithre_beam.transforms.epithre.emulator import fit
from epithre_beam.transforms.epithre.emulator.attributes import MAP_FILE, AttributesModel
from epithre_beam.transforms.epithre.emulator.captions import Attributes, Language, describe
from epithre_beam.transforms.epithre.emulator.draw import FIGURE_COLOURS, GROUND_COLOURS, draw_image, sample_attributes
from epithre_beam.transforms.epithre.emulator.lexicon import GROUPS, attributes_of

Floats = npt.NDArray[np.float32]

FRESH_SEED = 9_000  # differs from the seed of the shipped map
PHOTOS = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "photos"

TEXTURE_WORDS: dict[Language, dict[str, str]] = {
    "en": {"plain": "plain", "striped": "striped", "dotted": "polka dot", "checked": "checkered"},
    "id": {"plain": "polos", "striped": "bergaris", "dotted": "polkadot", "checked": "kotak-kotak"},
}


def encoded(drawing: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    drawing.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def assert_unit(vector: Floats, dimension: int) -> None:
    assert vector.dtype == np.float32
    assert vector.shape == (dimension,)
    assert np.isfinite(vector).all()
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5


@pytest.fixture(scope="module")
def model() -> AttributesModel:
    return AttributesModel()


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Attributes, Image.Image]]:
    drawings = []
    for i in range(200):
        rng = np.random.default_rng([FRESH_SEED, i])
        attributes = sample_attributes(rng)
        drawings.append((attributes, draw_image(rng, attributes)))
    return drawings


@pytest.fixture(scope="module")
def vectors(model: AttributesModel, drawn: list[tuple[Attributes, Image.Image]]) -> Floats:
    return np.array([model.embed_image(encoded(drawing)) for _, drawing in drawn])


def three_word_query(attributes: Attributes, language: Language, third: str) -> tuple[str, tuple[str, ...]]:
    """A sentence with colour, shape and a third group, and the groups that it names."""
    values = {"colour": attributes.colour, "shape": attributes.shape, "ground": attributes.ground}
    if third == "ground":
        return describe(Attributes(**values, texture="plain"), language), ("colour", "shape", "ground")
    bare = describe(Attributes(**values, texture="plain"), language)
    place = describe(Attributes(colour="red", shape="cat", texture="plain", ground=attributes.ground), language)
    prefix = len("a red cat") if language == "en" else len("kucing merah")
    sentence = bare.removesuffix(place[prefix:]) + " " + TEXTURE_WORDS[language][attributes.texture]
    return sentence, ("colour", "shape", "texture")


@pytest.mark.parametrize("third", ["ground", "texture"])
@pytest.mark.parametrize("language", ["en", "id"])
def test_a_three_word_query_finds_a_matching_image(
    model: AttributesModel,
    drawn: list[tuple[Attributes, Image.Image]],
    vectors: Floats,
    language: Language,
    third: str,
) -> None:
    first, among_five, matching, others = [], [], [], []
    for wanted, _ in drawn:
        sentence, groups = three_word_query(wanted, language, third)
        scores = vectors @ model.embed_text(sentence)
        hit = np.array([all(getattr(a, g) == getattr(wanted, g) for g in groups) for a, _ in drawn])
        order = np.argsort(-scores)
        first.append(hit[order[0]])
        among_five.append(hit[order[:5]].any())
        matching.extend(scores[hit])
        others.extend(scores[~hit])
    assert np.mean(first) >= 0.95
    assert np.mean(among_five) >= 0.99
    # No gap between texts and images: matching images score clearly higher than others.
    assert np.quantile(matching, 0.01) > 0.5
    assert np.quantile(others, 0.9) < 0.3


@pytest.mark.parametrize(
    ("sentences", "wanted"),
    [
        (("sepeda merah", "red bicycle"), {"shape": "bicycle", "colour": "red"}),
        (("kucing oren", "orange cat"), {"shape": "cat", "colour": "orange"}),
        (("ikan biru di pasir", "blue fish on sand"), {"shape": "fish", "colour": "blue", "ground": "sand"}),
    ],
)
def test_the_demo_sentences_rank_all_matching_images_first(
    model: AttributesModel, sentences: tuple[str, str], wanted: dict[str, str]
) -> None:
    rng = np.random.default_rng(FRESH_SEED + 1)
    drawings = []
    for i in range(80):
        attributes = sample_attributes(rng)
        values = vars(attributes) | (wanted if i < 8 else {})
        values |= {"ground": "sand"} if i < 8 and "ground" not in wanted else {}
        drawings.append(Attributes(**values))
    matrix = np.array([model.embed_image(encoded(draw_image(rng, a))) for a in drawings])
    hits = {i for i, a in enumerate(drawings) if all(getattr(a, g) == v for g, v in wanted.items())}
    for sentence in sentences:
        best = np.argsort(-(matrix @ model.embed_text(sentence)))[: len(hits)]
        assert set(best.tolist()) == hits


def test_captions_in_both_languages_match_the_drawing() -> None:
    rng = np.random.default_rng(FRESH_SEED + 2)
    for _ in range(300):
        attributes = sample_attributes(rng)
        for language in ("en", "id"):
            said = attributes_of(describe(attributes, language))
            for group, value in vars(attributes).items():
                if (group, value) != ("texture", "plain"):  # a caption does not mention plain
                    assert said.get(group) == {value: 1.0}, describe(attributes, language)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kucing oren dengan latar belakang putih polos", {"colour": "orange", "shape": "cat", "ground": "snow"}),
        ("sepeda merah background putih", {"colour": "red", "shape": "bicycle", "ground": "snow"}),
        ("a red circle on a plain white background", {"colour": "red", "shape": "circle", "ground": "snow"}),
        ("hati jingga di atas putih", {"colour": "orange", "shape": "heart", "ground": "snow"}),
        ("a red bicycle under a blue sky", {"colour": "red", "shape": "bicycle", "ground": "sky"}),
        ("kotak kotak-kotak biru tua", {"colour": "blue", "shape": "square", "texture": "checked"}),
        ("segitiga merah jambu, bintik-bintik", {"colour": "pink", "shape": "triangle", "texture": "dotted"}),
        ("Two ORANGE cats at night", {"colour": "orange", "shape": "cat", "ground": "night"}),
        ("sepedanya kelabu", {"colour": "grey", "shape": "bicycle"}),
        ("mobil biru laut di pantai", {"colour": "blue", "shape": "car", "ground": "sand"}),
        ("sepeda motor hitam", {"colour": "black"}),
        ("hati-hati", {}),
    ],
)
def test_attributes_of_common_phrases(text: str, expected: dict[str, str]) -> None:
    assert attributes_of(text) == {group: {value: 1.0} for group, value in expected.items()}


def test_both_languages_give_similar_vectors(model: AttributesModel) -> None:
    english, indonesian = model.embed_text("red bicycle at night"), model.embed_text("sepeda merah di malam hari")
    assert english @ indonesian > 0.7
    assert english @ model.embed_text("ikan kuning di laut") < 0.3


def test_the_same_bytes_give_the_same_vector_in_every_thread_and_instance(
    model: AttributesModel, drawn: list[tuple[Attributes, Image.Image]], vectors: Floats
) -> None:
    files = [encoded(drawing) for _, drawing in drawn[:40]]
    with ThreadPoolExecutor(16) as pool:
        again = list(pool.map(AttributesModel().embed_image, files * 3))
    assert np.array_equal(np.array(again), np.tile(vectors[:40], (3, 1)))
    assert model.embed_text("kucing oren").tobytes() == AttributesModel().embed_text("kucing oren").tobytes()
    assert AttributesModel().fingerprint == model.fingerprint


def test_reencoding_and_slight_resizing_hardly_change_the_vector(
    model: AttributesModel, drawn: list[tuple[Attributes, Image.Image]], vectors: Floats
) -> None:
    worst = 1.0
    for (_, drawing), vector in zip(drawn[:60], vectors[:60], strict=True):
        side = drawing.width
        variants = [encoded(drawing, quality=quality) for quality in (75, 85, 95)]
        variants += [encoded(drawing.resize((s, s)), quality=85) for s in (side * 9 // 10, side + 7)]
        variants.append(encoded(drawing, "PNG"))
        worst = min(worst, *(float(vector @ model.embed_image(variant)) for variant in variants))
    assert worst > 0.99


@pytest.mark.skipif(
    not PHOTOS.is_dir(),
    reason=f"Landscape_1.jpg … of github.com/recurser/exif-orientation-examples are not in {PHOTOS}",
)
def test_eight_orientations_of_a_photograph_have_similar_vectors_once_upright(model: AttributesModel) -> None:
    upright: dict[str, Floats] = {}
    for scene in ("Landscape", "Portrait"):
        found = []
        for orientation in range(1, 9):
            with Image.open(PHOTOS / f"{scene}_{orientation}.jpg") as photo:
                found.append(model.embed_image(encoded(ImageOps.exif_transpose(photo))))
        upright[scene] = np.array(found)
        assert (upright[scene] @ upright[scene].T).min() > 0.99
    assert (upright["Landscape"] @ upright["Portrait"].T).max() < 0.8


def test_the_orientation_tag_is_not_applied(
    model: AttributesModel, drawn: list[tuple[Attributes, Image.Image]], vectors: Floats
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(model.embed_image(encoded(drawn[0][1], exif=exif)), vectors[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (5, 3), (900, 640)])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("P", "GIF"), ("PA", "TIFF"), ("RGB", "WEBP"), ("RGBA", "PNG"),
        ("CMYK", "JPEG"), ("LAB", "TIFF"), ("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF"),
    ],
)  # fmt: skip
def test_any_mode_and_size_gives_a_unit_vector(
    model: AttributesModel, mode: str, kind: str, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    drawing = Image.fromarray(noise)
    if mode == "I;16":
        drawing = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        drawing = Image.merge("LAB", drawing.split())
    else:
        drawing = drawing.convert("P").convert(mode) if mode == "PA" else drawing.convert(mode)
    assert_unit(model.embed_image(encoded(drawing, kind)), 4000)


def test_16_bit_and_8_bit_greys_of_one_image_have_similar_vectors(model: AttributesModel) -> None:
    rng = np.random.default_rng(4)
    drawing = draw_image(rng, Attributes(colour="black", shape="cat", texture="plain", ground="snow"))
    grey = drawing.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert model.embed_image(encoded(grey, "PNG")) @ model.embed_image(encoded(deep, "PNG")) > 0.999


def test_transparency_is_rendered_over_white(model: AttributesModel) -> None:
    rng = np.random.default_rng(5)
    figure = Image.new("RGBA", (64, 64), (9, 200, 9, 0))
    figure.paste((200, 20, 20, 255), (20, 20, 44, 44))
    flat = Image.new("RGB", (64, 64), "white")
    flat.paste((200, 20, 20), (20, 20, 44, 44))
    seen = model.embed_image(encoded(figure, "PNG"))
    assert seen @ model.embed_image(encoded(flat, "PNG")) > 0.999
    other = draw_image(rng, Attributes(colour="blue", shape="cat", texture="plain", ground="grass"))
    assert seen @ model.embed_image(encoded(other)) < 0.5


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", encoded(Image.effect_noise((300, 300), 80))[:2000]],
    ids=["empty", "text", "postscript", "cut short"],
)
def test_embed_image_raises_for_invalid_bytes(model: AttributesModel, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^the bytes cannot be decoded as an image \(\w+\)$"):
        model.embed_image(data)


@pytest.mark.parametrize("text", ["", " \n", "日本語の猫", "🙂🙂", "\ud800", "a\0b", "kucing " * 5000, "x" * 100_000])
def test_any_text_gives_a_unit_vector(model: AttributesModel, text: str) -> None:
    assert_unit(model.embed_text(text), 4000)


def test_texts_outside_the_lexicon_have_different_vectors(model: AttributesModel) -> None:
    rows = np.array([model.embed_text(text) for text in ("quarterly report", "laporan", "猫", "🙂", "")])
    assert (rows @ rows.T)[~np.eye(len(rows), dtype=bool)].max() < 0.5


@pytest.mark.parametrize("dimension", [8, 9, 100, 512, 1000, 4096, 5000])
def test_every_dimension_from_eight_is_supported(dimension: int) -> None:
    model = AttributesModel(dimension)
    drawing = draw_image(np.random.default_rng(6), sample_attributes(np.random.default_rng(6)))
    image, text = model.embed_image(encoded(drawing)), model.embed_text("kucing oren")
    assert_unit(image, dimension)
    assert_unit(text, dimension)
    # The transform preserves inner products, more precisely with more dimensions.
    if dimension >= 512:
        wide = AttributesModel()
        expected = wide.embed_text("kucing oren") @ wide.embed_text("mobil oren")
        assert abs(float(text @ model.embed_text("mobil oren") - expected)) < 0.15


def test_fewer_than_eight_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension must be at least 8, got 7"):
        AttributesModel(7)


def test_an_image_takes_milliseconds(model: AttributesModel, drawn: list[tuple[Attributes, Image.Image]]) -> None:
    """About 4 ms of CPU time; the best of three rounds must stay below ten times that."""
    files = [encoded(drawing) for _, drawing in drawn[:20]]
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for data in files:
            model.embed_image(data)
        rounds.append((time.process_time() - start) / len(files))
    assert min(rounds) < 0.04


def test_a_drawing_depends_only_on_the_generator() -> None:
    def draw() -> Image.Image:
        rng = np.random.default_rng(8)
        return draw_image(rng, sample_attributes(rng), 96)

    assert draw().tobytes() == draw().tobytes()
    assert draw().size == (96, 96)


def test_sample_attributes_covers_every_value() -> None:
    assert tuple(FIGURE_COLOURS) == GROUPS["colour"]
    assert tuple(GROUND_COLOURS) == GROUPS["ground"]
    rng = np.random.default_rng(10)
    sampled = [sample_attributes(rng) for _ in range(1000)]
    for group, values in GROUPS.items():
        assert {getattr(attributes, group) for attributes in sampled} == set(values)


def test_an_unknown_value_is_refused_with_its_group() -> None:
    with pytest.raises(ValueError, match=r"shape must be one of circle, .*, got 'dragon'"):
        Attributes(colour="red", shape="dragon", texture="plain", ground="sea")


def test_refitting_with_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("once", "twice"):
        fit.main(["--images", "40", "--seed", "7", "--out", str(tmp_path / f"{name}.npz")])
    once, twice = ((tmp_path / f"{name}.npz").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_the_shipped_map_is_small_and_has_no_pickle() -> None:
    shipped = Path(fit.__file__).with_name(MAP_FILE)
    assert shipped.stat().st_size < 300_000
    with np.load(shipped, allow_pickle=False) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)


def test_the_model_needs_no_beam() -> None:
    code = "import sys, epithre_beam.transforms.epithre.emulator.attributes;sys.exit('apache_beam' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
