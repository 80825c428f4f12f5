"""What no text may show: secrets that are known, however they are written, and credentials that stand in URLs."""

import base64
import html.entities
import re
from collections.abc import Iterator, Mapping

HIDDEN = "***"
_SHORTEST = 6
"""Characters. A shorter secret is none, and hiding it would make words unreadable."""
_BREAK = r"(?:\s|\\{1,4}[rn]){0,4}"
"""Where encoders break lines; bounded, like every repetition here, because the text is hostile."""
_PASSWORD = re.compile(r"(?<=://)[^/?#\s@]*:[^/?#\s]*@")
_WEB_USER = re.compile(r"(?i)(?<=http://|ttps://)[^/?#\s@]+@")
_SIGNATURE = re.compile(
    r"(?i)([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|"
    r"(?:access_|id_|auth_|refresh_)?token|(?:api[-_]?)?key|(?:client_)?secret|password|passwd|pwd|auth)=)[^&;#\s'\"<>)]+"
)


class Scrubber:
    r"""Takes known secrets out of texts of others, such as a key that a server's error repeats.

    A secret is found as it is, in either case of its letters; with any of its characters escaped as in URLs (`%4b`,
    also twice), JSON and Python (`\u004b`, `\x4b`, `\/`) or HTML (`&#75;`, `&amp;`); as hex; and within base64 of
    either alphabet at any offset, as in a `Basic` header. Beyond reach: a secret in pieces, or encoded otherwise.

    Args:
        *secrets: Empty and very short ones are ignored.
    """

    def __init__(self, *secrets: str) -> None:
        found = [pattern for secret in set(secrets) if len(secret) >= _SHORTEST for pattern in _patterns(secret)]
        self._pattern = re.compile("|".join(found)) if found else None

    def text(self, text: str) -> str:
        """The text with `***` in place of the secrets."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)

    def body(self, body: bytes) -> bytes:
        """The same of bytes. JSON stays JSON."""
        return self.text(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The same of an answer's headers, by their names in lower case."""
        return {self.text(name.lower()): self.text(value) for name, value in headers.items()}


def without_credentials(text: str) -> str:
    """The text without what URLs in it carry: passwords, users of web addresses, and parameters that sign or open."""
    if "://" not in text:
        return text
    text = _WEB_USER.sub(f"{HIDDEN}@", _PASSWORD.sub(f"{HIDDEN}@", text))
    return _SIGNATURE.sub(rf"\1{HIDDEN}", text)


def _patterns(secret: str) -> Iterator[str]:
    data = secret.encode("utf-8", "surrogatepass")
    yield f"(?i:{''.join(_written(c) for c in secret)})"
    yield f"(?i:{'[:-]?'.join(f'{byte:02x}' for byte in data)})"
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data).decode()
        # Characters that depend on the secret alone, whatever stands before and after it.
        core = encoded[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6]
        yield _BREAK.join(_in_base64(c) for c in core) + "[A-Za-z0-9+/_-]?={0,2}"


def _in_base64(character: str) -> str:
    """A character of base64, of whichever alphabet."""
    both = {"+": "+-", "/": "/_"}.get(character, character)
    return f"(?:{'|'.join(_written(c) for c in both)})"


def _written(character: str) -> str:
    """The ways to write a character, as a regular expression."""
    units = character.encode("utf-16-be", "surrogatepass")
    data = character.encode("utf-8", "surrogatepass")
    code = ord(character)
    ways = [
        "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in data),
        "".join(rf"\\{{1,4}}u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)),
        "".join(rf"\\{{1,4}}x{byte:02x}" for byte in data),
        f"&(?:amp;)?#(?:0{{0,6}}{code}|x0{{0,6}}{code:x});?",
    ]
    if name := html.entities.codepoint2name.get(code):
        ways.append(f"&(?:amp;)?{name};")
    return rf"(?:\\{{0,4}}{re.escape(character)}|(?i:{'|'.join(ways)}))"
