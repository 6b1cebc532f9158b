"""Passwords in the URLs of storages: they are never shown, whatever a message quotes."""

from __future__ import annotations

import json
import re
import shlex
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
LEAST_ANYWHERE = 4  # characters of a secret that is hidden inside of words too; a shorter one only as a word (chosen)
# The last @ ends the password, which may contain others, though they should be encoded.
IN_AUTHORITY = re.compile(r"(?<=://)([^:/?#@\s]*):(.*)(?=@)", re.DOTALL)
IN_QUERY = re.compile(r"([?&;][^=&;\s]*(?:pass|pwd|secret|token|key)[^=&;\s]*)=([^&;#\s]*)", re.IGNORECASE)


def shown(word: str) -> str:
    """Return a word of a command line, such as the URL of a storage, with its passwords hidden.

    Examples
    --------
    >>> shown("postgresql://me:p%40ss@host:5432/db?sslpassword=secret")
    'postgresql://me:***@host:5432/db?sslpassword=***'
    >>> shown("runs/digits")
    'runs/digits'
    """
    if "://" not in word:
        return word
    return IN_QUERY.sub(rf"\1={HIDDEN}", IN_AUTHORITY.sub(rf"\1:{HIDDEN}", word))


def is_ambiguous(url: str) -> bool:
    """Return whether a password in a URL holds an @ that is not encoded: the rest is taken for the host, and shown."""
    found = IN_AUTHORITY.search(url)
    return found is not None and "@" in found[2]


def without_passwords(text: str, url: str | None) -> str:
    """Return a text with the passwords of a URL hidden, in every form in which a library may quote them.

    Parameters
    ----------
    text
        Any text, such as the message of an error.
    url
        The URL of the storage, None where it is a file.
    """
    if url is None or "://" not in url:
        return text
    parts = text.replace(url, shown(url)).split(shown(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        pattern = re.escape(secret) if len(secret) >= LEAST_ANYWHERE else rf"(?<!\w){re.escape(secret)}(?!\w)"
        parts = [re.sub(pattern, HIDDEN, part) for part in parts]
    return shown(url).join(parts)


def _secrets(url: str) -> set[str]:
    """Return the passwords of a URL as they are written there, decoded, and quoted; and long parts of the former."""
    written = [found[2] for pattern in (IN_AUTHORITY, IN_QUERY) for found in pattern.finditer(url)]
    parts = {part for one in written for part in re.split(r"[@:/]", one) if len(part) >= LEAST_ANYWHERE}
    plain = {*written, *map(unquote, written), *map(unquote_plus, written)}
    quoted = {quote for one in plain for quote in (repr(one)[1:-1], json.dumps(one)[1:-1], shlex.quote(one))}
    return {one for one in plain | quoted | parts if one}
