"""Opening a data file, plain or compressed, and naming a file that cannot be read."""

from __future__ import annotations

import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.data.problem import RowProblem
from tuneline.core.environment import require
from tuneline.core.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SAMPLE_BYTES = 2**20
"""The beginning of a file whose encoding is guessed."""
GUESSED_BYTES = 2**16
ENCODINGS = [
    "cp949", "cp932", "gb18030", "big5", "cp1251", "cp1253", "cp1255", "cp1256", "koi8_r", "euc_jp",
    "cp1250", "cp1252",
]  # fmt: skip
"""Encodings that spreadsheets write, the frequent ones first: a few bytes fit many."""
MUCH_CHAOS = 0.2
OTHER_FILES = (
    (b"PAR1", ".parquet", "The file is Parquet; give its name the suffix .parquet."),
    (b"PK\x03\x04", "", "The file is a zip archive or an Excel workbook. Unpack it, or save it as "
     "CSV (in Excel: CSV UTF-8)."),
    (b"\xd0\xcf\x11\xe0", "", "The file is a workbook of an old Excel. Save it as CSV UTF-8."),
    (b"%PDF", "", "The file is a PDF; expected rows, such as a JSON object in each line."),
    (b"SQLite format 3", "", "The file is a database of SQLite. Try: sqlite3 -csv -header {path} "
     "'select * from TABLE' > rows.csv"),
    (b"ARROW1", "", "The file is Arrow or Feather. Try: python -c 'import sys, pyarrow.feather as "
     'f, pyarrow.parquet as p; p.write_table(f.read_table(sys.argv[1]), "rows.parquet")\' {path}'),
    (b"\x1f\x8b", ".gz", "The file is compressed with gzip; give its name the suffix .gz."),
    (b"\x28\xb5\x2f\xfd", ".zst", "The file is compressed with zstd; give its name the suffix "
     ".zst."),
    (b"BZh", "", "The file is compressed with bzip2. Try: bunzip2 {path}"),
    (b"\xfd7zXZ", "", "The file is compressed with xz. Try: unxz {path}"),
)  # fmt: skip
"""First bytes of other files, the suffix with which they are read, and what to do."""
TEXT_SUFFIXES = (".txt", ".text", ".md", ".log")
_SYMBOL_IN_WORD = re.compile(r"[^\W\d_][¹³¿¼¾¯£]|[¹³¿¼¾¯£][^\W\d_]")
"""Letters of Polish and its neighbors, if they are read as Western European."""


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, behind its byte order mark; `.gz` and `.zst` are decompressed.

    Raises:
        DataError: The file is missing, a directory, may not be read or is damaged.
    """
    with named(path):
        if path.suffix.lower() == ".gz":
            file: Any = gzip.open(path)  # noqa: SIM115 (closed below)
        elif path.suffix.lower() == ".zst":
            pyarrow = require("pyarrow", "train")
            file = pyarrow.input_stream(str(path), compression="zstd")
        else:
            file = path.open("rb", buffering=0)
        with io.BufferedReader(file) as stream:
            if stream.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
                stream.read(len(BYTE_ORDER_MARK))
            yield stream


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected the training data",
            hint="Set data.path in run.yaml; it is relative to the run.yaml.",
        ) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; expected a data file") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read; check its permissions") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged: {error}; expected a whole gzip file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def decode_utf8(line: bytes) -> str:
    """Return the text of a line.

    Raises:
        RowProblem: It is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem(f"byte {error.start + 1}: not UTF-8 text ({error.reason})") from None


def hint_for(path: Path) -> str | None:
    """Return what to do about a file whose first bytes are those of another format."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return None
    quoted, suffix = shlex.quote(str(path)), path.suffix.lower()
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        as_text = ".tsv" if suffix in TEXT_SUFFIXES else path.suffix  # Excel's "Unicode text"
        return f"The file is UTF-16. Try: iconv -f UTF-16 -t UTF-8 {quoted} > utf8{as_text}"
    for magic, known, what in OTHER_FILES:
        if head.startswith(magic) and suffix != known:
            return what.format(path=quoted)
    is_text = b"\x00" not in head and suffix not in (".gz", ".zst", ".parquet")
    if is_text and (name := _other_encoding(path)) is not None:
        return (
            f"The file looks like {name}. Try: iconv -f {name} -t UTF-8 {quoted} > "
            f"utf8{path.suffix}"
        )
    if not is_text or head.lstrip(BYTE_ORDER_MARK + b" \t\r\n")[:1] in (b"{", b"["):
        return None
    first = head.split(b"\n")[0]
    table = "If the file is CSV or TSV, give its name the suffix .csv or .tsv."
    has_cells = b"," in first or b"\t" in first
    if suffix in TEXT_SUFFIXES:
        return (f"{table} " if has_cells else "") + (
            "The file is plain text; expected rows. To train each line as a text, try: jq -Rc "
            f"'select(length > 0) | {{text: .}}' {quoted} > NEW.jsonl"
        )
    if suffix in (".jsonl", ".json", "") and has_cells:
        return table
    return None


def _other_encoding(path: Path) -> str | None:
    """Return the likely encoding of a file whose beginning is not UTF-8, as iconv names it."""
    with path.open("rb") as file:
        beginning = file.read(SAMPLE_BYTES)
    lines = beginning.splitlines()
    if len(beginning) == SAMPLE_BYTES:
        lines.pop()  # it may end within a character
    foreign = [line for line in lines if not line.isascii()]
    others = [line for line in foreign if not _is_utf8(line)]
    # A few broken rows do not make a file of another encoding: its good rows would be spoilt.
    if not others or 2 * len(others) < len(foreign):
        return None
    from charset_normalizer import from_bytes

    sample = b"\n".join(others)[:GUESSED_BYTES]
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", sample)]
    # Single letters among ASCII are those of a European language; other languages have whole words.
    if 2 * runs.count(1) >= len(runs) and 2 * sum(runs) < len(sample):
        is_eastern = _SYMBOL_IN_WORD.search(sample.decode("cp1252", errors="replace"))
        return "CP1250" if is_eastern else "CP1252"
    found = from_bytes(sample, cp_isolation=ENCODINGS)
    if not found:
        return None
    best = min(found, key=lambda one: (one.chaos > MUCH_CHAOS, ENCODINGS.index(one.encoding)))
    return best.encoding.replace("_", "-").upper()


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
