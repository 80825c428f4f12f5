"""Removes known secrets, in any encoding, and credentials in URLs from texts."""

import base64
import html.entities
import re
from collections.abc import Iterator, Mapping

HIDDEN = "***"
_SHORTEST = 6
"""Characters. Shorter secrets are not hidden, because that would make ordinary words unreadable."""
_BREAK = r"(?:\s|\\{1,4}[rn]){0,4}"
"""Where encoders break lines. All repetitions here are bounded, because the text may be hostile."""
_PASSWORD = re.compile(r"(?<=://)[^/?#\s@]*:[^/?#\s]*@")
_WEB_USER = re.compile(r"(?i)(?<=http://|ttps://)[^/?#\s@]+@")
_SIGNATURE = re.compile(
    r"(?i)([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|"
    r"(?:access_|id_|auth_|refresh_)?token|(?:api[-_]?)?key|(?:client_)?secret|password|passwd|pwd|auth)=)[^&;#\s'\"<>)]+"
)


class Scrubber:
    r"""Hides known secrets in texts from elsewhere, such as a key that a server's error message repeats.

    A secret is found in plain text (in upper or lower case), with characters escaped as in URLs (`%4b`, also twice),
    JSON and Python (`\u004b`, `\x4b`, `\/`) or HTML (`&#75;`, `&amp;`), as hex, and in base64 of either alphabet at
    any offset, as in a `Basic` header. A secret that is split or encoded in another way is not found.

    Args:
        *secrets: Secrets of less than 6 characters are ignored.
    """

    def __init__(self, *secrets: str) -> None:
        found = [pattern for secret in set(secrets) if len(secret) >= _SHORTEST for pattern in _patterns(secret)]
        self._pattern = re.compile("|".join(found)) if found else None

    def text(self, text: str) -> str:
        """The text with each secret replaced by `***`."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)

    def body(self, body: bytes) -> bytes:
        """As `text`, for bytes. Valid JSON stays valid."""
        return self.text(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """As `text`, for the headers of a response; their names become lower case."""
        return {self.text(name.lower()): self.text(value) for name, value in headers.items()}


def without_credentials(text: str) -> str:
    """Hides the credentials of URLs in the text: passwords, users of http(s) URLs, signatures, keys and tokens."""
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
        # Only the characters that do not depend on what precedes or follows the secret.
        core = encoded[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6]
        yield _BREAK.join(_in_base64(c) for c in core) + "[A-Za-z0-9+/_-]?={0,2}"


def _in_base64(character: str) -> str:
    """A base64 character in both alphabets, as a regular expression."""
    both = {"+": "+-", "/": "/_"}.get(character, character)
    return f"(?:{'|'.join(_written(c) for c in both)})"


def _written(character: str) -> str:
    """All encodings of a character, as a regular expression."""
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
