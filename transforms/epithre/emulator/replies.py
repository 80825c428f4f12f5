"""What the emulator says about images: colour, figure, pattern and ground, in English or Indonesian."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .captions import Attributes, Language, describe

_INDONESIAN = frozenset(
    {
        "apa", "apakah", "ada", "adalah", "akan", "anda", "atau", "bagaimana", "bahwa", "berapa", "berikan",
        "buat", "dalam", "dan", "dari", "dengan", "deskripsikan", "di", "gambar", "ini", "itu", "isi",
        "jawab", "jelaskan", "kamu", "ke", "lihat", "mana", "pada", "sebutkan", "siapa", "tentang", "tulis",
        "tolong", "untuk", "warna", "yang", "ekstrak", "tanggal", "bentuk", "latar",
    }
)  # fmt: skip
_ENGLISH = frozenset(
    {
        "a", "an", "and", "answer", "are", "at", "be", "describe", "does", "for", "from", "give", "how",
        "image", "in", "is", "it", "list", "name", "of", "on", "or", "picture", "please", "show", "tell",
        "that", "the", "this", "to", "what", "which", "who", "with", "write", "colour", "color", "shape",
        "extract",
    }
)  # fmt: skip
_WORD = re.compile(r"[a-z]+")


def language_of(text: str) -> Language:
    """Return the language of a text: that of most of its common words, otherwise English."""
    words = _WORD.findall(text.lower())
    return "id" if sum(w in _INDONESIAN for w in words) > sum(w in _ENGLISH for w in words) else "en"


def reply_to(question: str, seen: Sequence[Attributes], language: Language) -> str:
    """Return what the emulator answers: it describes the images, and understands nothing else."""
    if not seen:
        asked = " ".join(question.split())[:200]
        if language == "id":
            return f"Emulator ini hanya melihat gambar, dan tidak ada gambar. Pertanyaan: {asked}"
        return f"This emulator only sees images, and there is none. The question was: {asked}"
    if len(seen) == 1:
        return caption_of(seen[0], language)
    image = "Gambar" if language == "id" else "Image"
    return " ".join(f"{image} {number}: {describe(one, language)}." for number, one in enumerate(seen, 1))


def caption_of(seen: Attributes, language: Language) -> str:
    """Return a sentence about an image."""
    words = describe(seen, language)
    return f"{words[0].upper()}{words[1:]}."
