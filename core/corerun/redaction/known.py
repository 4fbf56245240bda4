"""The secrets that this process knows, and every form in which one may turn up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

HIDDEN = "[redacted]"
SHORTEST_SECRET = 8
"""Shorter values are placeholders such as ``none``; hiding them would only spoil ordinary words."""

_SECRET_NAME = re.compile(
    r"(?i)api_?key|access_?key|private_?key|secret|passw(?:or)?d|passphrase|credential"
    r"|token(?![a-z])|(?:^|_)(?:key|pat|auth)$"
)
_NO_SECRET_NAME = re.compile(r"(?i)_(?:file|path|dir|type)$")
_ADDRESS_NAME = re.compile(r"(?i)_(?:url|uri|proxy|base|endpoint|dsn)$")
_REFERENCE = re.compile(r"env:|\$\{")
_ESCAPED = re.compile("%[0-9A-F]{2}")

_hidden: tuple[tuple[str, str], ...] = ()
"""Every form of every remembered value with what stands in its place, the longest first."""


def remember(*secrets: str) -> None:
    """From now on hide these values wherever this process writes; placeholders are passed over.

    A value is also found as it stands in URLs, JSON, YAML and base64.
    """
    global _hidden
    found = dict(_hidden)
    for secret in secrets:
        # What stands in a secret's place can't be hidden itself.
        if len(secret) >= SHORTEST_SECRET and secret not in HIDDEN and HIDDEN not in secret:
            for form in _forms(secret):
                found |= _replacements(form)
    if len(found) > len(_hidden):
        _hidden = tuple(sorted(found.items(), key=lambda pair: -len(pair[0])))


def remember_environment(environ: Mapping[str, str]) -> None:
    """Remember the values of all variables whose names say that they are secret, and the logins in the
    addresses of servers and proxies."""
    for name, value in environ.items():
        if _ADDRESS_NAME.search(name):
            remember_address(value)
        elif _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            remember(value.strip())


def remember_address(url: str) -> None:
    """Remember the login in a URL: its password, or its user where that is all there is."""
    from urllib.parse import unquote, urlsplit

    try:
        login = urlsplit(url if "://" in url else f"//{url}").netloc.rpartition("@")[0]
    except ValueError:
        return
    user, colon, password = login.partition(":")
    if password:
        remember(password, unquote(password), login, unquote(login))
    elif user and not colon:
        remember(user, unquote(user))


def remember_arguments(arguments: Iterable[str]) -> None:
    """Remember what was typed on a command line for a setting whose name says that it is secret."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        value = value.strip("\"' ")
        if _SECRET_NAME.search(name.rpartition(".")[2].strip()) and not _REFERENCE.match(value):
            remember(value)


def hide_known(text: str) -> str:
    """``text`` without remembered values."""
    for form, replacement in _hidden:
        text = text.replace(form, replacement)
    return text


def _forms(secret: str) -> set[str]:
    import base64
    from urllib.parse import quote, quote_plus

    body = secret.encode("utf-8", "surrogatepass")
    in_json = [json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    in_urls = [quote(body), quote(body, safe=""), quote_plus(body)]
    forms = {secret, body.decode("latin-1"), secret.replace("'", "''"), *in_json, *in_urls}
    # JSON in a string of JSON; servers that write their escapes in small letters.
    forms |= {json.dumps(text)[1:-1] for text in in_json}
    forms |= {_ESCAPED.sub(lambda escape: escape[0].lower(), text) for text in in_urls}
    for before in range(3):
        # Three bytes are four characters of base64. What stands about the value shows in the characters
        # at its ends, so they are left out.
        padded = base64.b64encode(bytes(before) + body).decode("ascii")
        whole = padded[-(-before * 8 // 6) : (before + len(body)) * 8 // 6]
        forms |= {whole, whole.replace("+", "-").replace("/", "_")}
    return {form for form in forms if len(form) >= SHORTEST_SECRET}


def _replacements(form: str) -> dict[str, str]:
    found = {form: HIDDEN}
    # After a backslash the first characters may belong to an escape of JSON, which must stay whole.
    if form[0] in "bfnrt":
        found["\\" + form] = "\\" + form[0] + HIDDEN
    elif form[0] == "u":
        found["\\" + form] = "\\" + form[:5] + HIDDEN
    return found
