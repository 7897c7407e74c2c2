"""Files that run code when they are loaded: pickles under any name, also inside archives.

Scanners of pickles judge which imports are dangerous. A release has no need of any pickle, so every
pickle is found here, by its opcodes (`pickletools` has their table) and not by a name or by the
first bytes: protocols 0 and 1 have no magic number, and the name is the writer's choice.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import pickletools
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import IO, cast

PICKLE_SUFFIXES = (".pkl", ".pickle", ".bin", ".pth", ".ckpt", ".joblib", ".dill")
CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh", ".dll")
MAX_DEPTH = 4
"""Archives inside one another that are opened; a deeper archive is refused."""
MAX_OPCODES = 100_000
"""No text and no tensor is that many opcodes in a row."""
MAX_IN_MEMORY = 2**24
CHUNK_BYTES = 2**16
NUMPY_MAGIC = b"\x93NUMPY"
OBJECTS = re.compile(rb"""['"][|<>=]?O\d*['"]""")
"""The type of a NumPy array of Python objects, in the header of its file."""
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
OPAQUE = {
    b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}  # fmt: skip
"""The magic numbers of archives that are not opened here, so that nobody knows what they hold."""
COMPRESSED: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
UNREADABLE = (
    OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
"""The errors of archives that are damaged, encrypted, or of a method that Python does not know."""

OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}  # fmt: skip
"""Bytes that the length of an argument takes."""
IMPORTS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
NAMED_IMPORTS = ("GLOBAL", "INST")
"""Module and name follow the opcode, a line each."""
CALLS = ("REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")
NAME = re.compile(rb"[A-Za-z_][\w.]*")
NUMBERS: dict[str, Callable[[bytes], object]] = {
    "INT": lambda text: text in (b"00", b"01") or int(text, 0),
    "LONG": lambda text: int(text.rstrip(b"L"), 0),
    "FLOAT": float, "GET": int, "PUT": int,
}  # fmt: skip
"""How an unpickler reads the arguments that are numbers in text."""


def unsafe_reason(path: Path) -> str | None:
    """Return why loading a file may run code; None if no reason is found."""
    with path.open("rb") as file:
        return _reason(path.name, file, 0)


def is_pickle(file: IO[bytes]) -> bool:
    """Return whether the bytes from here on are a pickle, of any protocol.

    They are a pickle if they are opcodes up to the end of the file, or up to a STOP after the magic
    number of a protocol, or if they import a name and then call it. Text and tensors are not
    opcodes after a few bytes, or take more from the stack than it holds.
    """
    stack: list[bool] = []
    has_magic = has_import = False
    for number in range(MAX_OPCODES):
        code = file.read(1)
        opcode = OPCODES.get(code[0]) if code else None
        if opcode is None:
            return False
        argument = _argument(file, opcode)
        if argument is None or not _apply(opcode, stack):
            return False
        if opcode.name == "PROTO":
            has_magic = has_magic or (number == 0 and argument[0] <= pickle.HIGHEST_PROTOCOL)
        if opcode.name in IMPORTS:
            names = argument.split(b"\n") if opcode.name in NAMED_IMPORTS else []
            has_import = has_import or all(map(NAME.fullmatch, names))
        if has_import and opcode.name in CALLS:
            return True
        if opcode.name == "STOP":
            return has_magic or not file.read(1)
    return True


def _argument(file: IO[bytes], opcode: pickletools.OpcodeInfo) -> bytes | None:
    """Read the argument of an opcode; None if no unpickler takes it.

    An argument with a length is skipped, and the result is empty.
    """
    if opcode.arg is None:
        return b""
    if opcode.arg.n in LENGTH_BYTES:
        size = file.read(LENGTH_BYTES[opcode.arg.n])
        is_signed = opcode.arg.n == pickletools.TAKEN_FROM_ARGUMENT4
        length = int.from_bytes(size, "little", signed=is_signed)
        if len(size) < LENGTH_BYTES[opcode.arg.n] or length < 0:
            return None
        try:
            file.seek(length, 1)
        except (OverflowError, ValueError, OSError):
            return None
        return b""
    if opcode.arg.n >= 0:
        value = file.read(opcode.arg.n)
        return value if len(value) == opcode.arg.n else None
    lines = [_line(file) for _ in range(2 if opcode.name in NAMED_IMPORTS else 1)]
    text = b"\n".join(line for line in lines if line is not None)
    if None in lines or not _is_valid(opcode.name, text):
        return None
    return text


def _line(file: IO[bytes]) -> bytes | None:
    """Return the start of a line without its end; None if the file ends before the line does."""
    start = part = file.readline(CHUNK_BYTES)
    while part and not part.endswith(b"\n"):
        part = file.readline(CHUNK_BYTES)
    return start.removesuffix(b"\n") if part else None


def _is_valid(name: str, text: bytes) -> bool:
    """Return whether an unpickler can read an argument that is a line of text."""
    if name == "STRING":
        return text[:1] in (b"'", b'"')
    if b"\0" in text:  # the unpickler in C reads a number up to it
        return True
    try:
        NUMBERS.get(name, bytes)(text)
    except ValueError:
        return False
    return True


def _apply(opcode: pickletools.OpcodeInfo, stack: list[bool]) -> bool:
    """Apply an opcode to a stack whose entries say whether they are marks.

    Returns:
        Whether the stack held what the opcode takes.
    """
    marks = [one is pickletools.markobject for one in opcode.stack_before]
    taken = len(marks)
    if any(marks) or (opcode.name == "POP" and stack and stack[-1]):
        if True not in stack:
            return False
        while not stack.pop():
            pass
        taken = marks.index(True) if any(marks) else 0
    if taken > len(stack) or (taken and any(stack[-taken:])):
        return False
    if taken:
        del stack[-taken:]
    stack += [one is pickletools.markobject for one in opcode.stack_after]
    return True


def _reason(name: str, file: IO[bytes], depth: int) -> str | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in PICKLE_SUFFIXES:
        return "has the name of a pickle"
    if (suffixes and suffixes[-1] in CODE_SUFFIXES) or ".so" in suffixes:
        return "is code"
    if _has_objects(file):
        return "holds Python objects, which are a pickle"
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    # "P" asks an unpickler for an object of its own, which the default one refuses.
    if not head.startswith(ZIP_MAGIC) and is_pickle(file):
        return "is a pickle"
    kind = next((kind for magic, kind in OPAQUE.items() if head.startswith(magic)), None)
    if kind is not None:
        return f"is a {kind} archive, which is not opened here"
    try:
        for inner, member in _members(file, head, depth):
            if depth == MAX_DEPTH:
                return f"is an archive inside {MAX_DEPTH} others"
            if (reason := _reason(inner, member, depth + 1)) is not None:
                return f"is an archive whose {inner} {reason}"
    except UNREADABLE as error:
        return f"is an archive that cannot be read ({error})"
    return None


def _has_objects(file: IO[bytes]) -> bool:
    """Return whether a file is a NumPy array of Python objects."""
    start = file.read(12)
    if not start.startswith(NUMPY_MAGIC) or len(start) < 12:
        return False
    length_bytes = 2 if start[6] == 1 else 4
    file.seek(8)
    length = int.from_bytes(file.read(length_bytes), "little")
    return OBJECTS.search(file.read(length)) is not None


def _members(file: IO[bytes], head: bytes, depth: int) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the content of each file in an archive; nothing for any other file."""
    is_zip = head.startswith(ZIP_MAGIC)
    # A zip archive is found by its end, so bytes may come before it. An inner file has no end
    # that can be had without reading all of it.
    if is_zip or (depth == 0 and zipfile.is_zipfile(file)):
        file.seek(0)
        yield from _of_zip(file)
        return
    for magic, opened in COMPRESSED.items():
        if head.startswith(magic):
            file.seek(0)
            yield "content", _spooled(opened(file))
            return
    if len(head) > 1 and head[0] == 0x78 and int.from_bytes(head[:2], "big") % 31 == 0:
        file.seek(0)
        if (inflated := _inflated(file)) is not None:
            yield "content", inflated
            return
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closed below)
    except tarfile.TarError:
        return
    with archive:
        for entry in archive:
            if entry.isfile() and (content := archive.extractfile(entry)) is not None:
                yield entry.name, content


def _of_zip(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                with archive.open(entry) as content:
                    is_inner = content.read(4).startswith(ZIP_MAGIC)
                    content.seek(0)
                    yield entry.filename, _spooled(content) if is_inner else content


def _spooled(stream: IO[bytes]) -> IO[bytes]:
    """Return a copy of a stream that can be read from any place."""
    copy: IO[bytes] = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 (the caller reads it)
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def _inflated(file: IO[bytes]) -> IO[bytes] | None:
    """Return the content of a zlib stream; None if the file is not one."""
    inflate = zlib.decompressobj()
    copy: IO[bytes] = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 (the caller reads it)
    try:
        while chunk := file.read(CHUNK_BYTES):
            copy.write(inflate.decompress(chunk))
    except zlib.error:
        if copy.tell() == 0:
            return None
    copy.seek(0)
    return copy
