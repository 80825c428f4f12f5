"""Seeded assets for benchmarks: distinct, valid JPEG files of about 200 kB, and short texts."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

_BASES = 32
_KB = 1000


def write_images(folder: Path, count: int, seed: int = 0, size_kb: int = 200) -> None:
    """Write `count` images, 1,000 in each subfolder. Each has a different comment segment, so all files differ.

    Drawing 20,000 different images would take longer than the benchmark. Their pixels do not matter, but their bytes,
    sizes and headers do.
    """
    rng = np.random.default_rng(seed)
    bases = [_base(rng, size_kb) for _ in range(_BASES)]
    for number in range(count):
        target = folder / f"{number // 1000:03d}"
        if number % 1000 == 0:
            target.mkdir(parents=True, exist_ok=True)
        base = bases[number % _BASES]
        comment = f"{seed}-{number}-".encode() + rng.bytes(int(rng.integers(16, 8000)))
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (target / f"{number:06d}.jpg").write_bytes(base[:2] + segment + base[2:])


def write_texts(path: Path, count: int, seed: int = 0) -> None:
    """Write a csv of `count` distinct texts of about 120 characters."""
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, int(rng.integers(3, 10)))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        for number in range(count):
            file.write(f"t{number:07d},{number} {' '.join(words[i] for i in rng.integers(0, 2000, 16))}\n")


def _base(rng: np.random.Generator, size_kb: int) -> bytes:
    """Make a JPEG of about `size_kb` kB: blurred noise, at the quality that gives this size."""
    noise = Image.fromarray(rng.integers(0, 256, (768, 1024, 3), np.uint8).astype(np.uint8))
    image = noise.filter(ImageFilter.GaussianBlur(1.2))
    for quality in range(95, 20, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= (size_kb - 4) * _KB:
            break
    return buffer.getvalue()
