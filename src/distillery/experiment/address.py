"""Weights by their address: ``https://host/file.pth#sha256=<64 hex digits>``, the bytes that they must have."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
FRAGMENT = re.compile(r"sha256=([0-9A-Fa-f]{64})")
# The one place that a plain connection goes to without passing others.
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where weights are fetched from, and the SHA-256 of their bytes, 64 hex digits."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        """A name for the file here: its own, and what tells it from another of that name."""
        path = PurePosixPath(unquote(urlsplit(self.url).path))
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:100].lstrip(".-")
        suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,12}", path.suffix) else ""
        return f"{stem or 'weights'}-{self.sha256[:16]}{suffix}"


def parse_address(weights: str) -> Address | None:
    """Take an address apart; None for a file, a tag or a run.

    Raises:
        ValueError: it is one that nothing can be fetched from safely.
    """
    if not SCHEME.match(weights):
        return None
    url, _, fragment = weights.partition("#")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or any(character.isspace() for character in url) or not url.isascii():
        raise ValueError("it is no address; expected https://HOST/FILE#sha256=<64 hex digits>")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in THIS_MACHINE):
        raise ValueError("only https:// is fetched (http:// from this machine alone); for others, name a file")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a password does not belong into a file; fetch it by hand and name the file")
    found = FRAGMENT.fullmatch(fragment)
    if found is None:
        what = "its bytes could be others tomorrow" if not fragment else f"#{fragment[:80]} is no checksum"
        raise ValueError(
            f"{what}; get the checksum by `curl -L {url} | sha256sum` and write {url}#sha256=<64 hex digits>"
        )
    return Address(url, found[1].lower())
