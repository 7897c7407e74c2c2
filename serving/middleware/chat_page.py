"""`/chat`: one page to talk to the model from a browser, if `serving.routes` has `page`.

A browser cannot send a bearer key with an address, so that the page takes the key as the password
of HTTP's Basic scheme. The page's own requests carry the header `x-tuneline-page`: with it the
other routes take the Basic scheme too. Another site's page cannot send that header without a
preflight, which needs a key, also on a server that lets in pages of other origins.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from pathlib import Path

from serving.middleware.asgi import Header, Scope, Send, header

CHAT_PAGE = "/chat"
PAGE_HEADER = b"x-tuneline-page"
CHALLENGE: Header = (b"www-authenticate", b'Basic realm="Tuneline: the API key is the password"')


def challenge(route: str) -> Header:
    """Return the header by which a refusal says how a key is sent."""
    return CHALLENGE if route == CHAT_PAGE else (b"www-authenticate", b"Bearer")


async def answer_page(send: Send, method: str) -> None:
    """Send the page, which loads nothing and sends nothing to any other server."""
    content, headers = _page()
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else content})


def takes_basic(scope: Scope) -> bool:
    """Return whether a request may present its key as a password."""
    return scope["path"] == CHAT_PAGE or header(scope, PAGE_HEADER) is not None


def password(authorization: str) -> str:
    """Return the password of an `Authorization: Basic` header; "" if the header is not one."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return decoded.decode("latin-1").partition(":")[2]


@functools.cache
def _page() -> tuple[bytes, tuple[Header, ...]]:
    content = Path(__file__).with_name("chat_page.html").read_bytes()
    script, style = (
        base64.b64encode(hashlib.sha256(_inside(tag, content)).digest()).decode()
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(content)),
        (b"content-security-policy", policy.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )


def _inside(tag: str, content: bytes) -> bytes:
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), content, re.DOTALL)
    (only,) = found
    return bytes(only)
