"""Images in chat messages: parts of a file's messages, or PNG files that are made here. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from typing import Any

import numpy as np

from loadtest.workload.content import is_text
from loadtest.workload_config import ImagesConfig
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Message, Messages

SQUARE = 4
"""Pixels per side of a square of one colour: a PNG of random squares has about 2 bits per pixel."""
MAX_TOTAL_BYTES = 512 * 2**20
"""Of all images of a scenario, as data URLs: the client has every request in memory."""
URLS = ("data:image/", "https://", "http://")


def content_problem(content: object) -> str | None:
    """Return why the content of a message cannot be sent; None for a text, or for a list of parts
    of type `text` and `image_url`."""
    if is_text(content):
        return None
    if not isinstance(content, list) or not content:
        return "content is not text"
    for number, part in enumerate(content, start=1):
        if plain_part(part) is None:
            return (
                f"part {number} of content is not a text, nor an image_url with a data URL of an "
                "image or a web address"
            )
    return None


def plain_part(part: object) -> dict[str, Any] | None:
    """Return a part with the keys that a server takes; None for a part that cannot be sent."""
    if not isinstance(part, dict):
        return None
    if part.get("type") == "text" and is_text(part.get("text")):
        return {"type": "text", "text": part["text"]}
    image = part.get("image_url")
    if part.get("type") != "image_url" or not isinstance(image, dict):
        return None
    kept = {key: image[key] for key in ("url", "detail") if is_text(image.get(key))}
    if not kept.get("url", "").startswith(URLS):
        return None
    return {"type": "image_url", "image_url": kept}


def plain_content(content: Any) -> Any:
    """Return content that has no problem, its parts with the keys that a server takes."""
    return [plain_part(part) for part in content] if isinstance(content, list) else content


def with_text_before(message: Message, text: str) -> Message:
    """Return a message whose content begins with a text."""
    content = message.get("content") or ""
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": f"{text} {content}"}


def with_images(messages: Messages, images: ImagesConfig, seed: int | None) -> Messages:
    """Return messages whose first message of the user brings images after its text.

    Images follow from the seed and that message, so the turns of a conversation have the same
    images, and a repeated prompt has its own again. Without a seed, they are new.
    """
    place = next((n for n, one in enumerate(messages) if one["role"] == "user"), None)
    if place is None:
        return messages
    rng = np.random.default_rng(None if seed is None else [seed, 4, _number_of(messages[place])])
    content = messages[place].get("content") or ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for _ in range(images.count):
        url = data_url(png(images.width, images.height, rng))
        parts = [*parts, {"type": "image_url", "image_url": {"url": url}}]
    return [*messages[:place], {**messages[place], "content": parts}, *messages[place + 1 :]]


def _number_of(message: Message) -> int:
    """Return a number that follows from the content of a message."""
    text = json.dumps(message, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def data_url(image: bytes) -> str:
    """Return a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def png(width: int, height: int, rng: np.random.Generator) -> bytes:
    """Return a PNG file of random squares (W3C PNG, third edition: 8-bit RGB, filters 0 and 2)."""
    colours = rng.integers(0, 256, (-(-height // SQUARE), -(-width // SQUARE), 3), np.uint8)
    same_as_above = b"\x02" + bytes(3 * width)
    lines = []
    for row in colours:
        line = b"\x00" + row.repeat(SQUARE, axis=0)[:width].tobytes()
        lines += [line, *[same_as_above] * (SQUARE - 1)]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(lines[:height]))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def count_images(messages: Messages) -> tuple[int, int]:
    """Return the number of images in messages, and the bytes of their URLs."""
    contents = [one["content"] for one in messages if isinstance(one.get("content"), list)]
    parts = [part for content in contents for part in content]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return len(urls), sum(map(len, urls))


def check_total(num_bytes: int) -> None:
    """Check that the images of a scenario fit into the memory of its clients.

    Raises:
        ConfigError: They have more than MAX_TOTAL_BYTES.
    """
    if num_bytes > MAX_TOTAL_BYTES:
        raise ConfigError(
            f"the images of this scenario have over {MAX_TOTAL_BYTES >> 20} MiB; "
            "expected less, because the client keeps every request in memory",
            hint="Try: smaller or fewer images, fewer requests, or unique_prompts: false",
        )
