"""Files as lines: plain or gzip, in blocks for speed, with the line numbers that a report needs.

reads   file  *.csv, *.json, *.jsonl and the same with .gz
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from afterclick.errors import BadDataset

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 32 << 20
BOM = b"\xef\xbb\xbf"


def open_bytes(path: Path) -> BinaryIO:
    """A file for reading, unpacked if it is gzip. Raises BadDataset if it cannot be opened."""
    try:
        file = path.open("rb")
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read ({error.strerror})") from None
    return cast(BinaryIO, gzip.open(file) if packed else file)


def blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file, about `size` bytes at a time, each with the number of its first line.

    A byte order mark is dropped. Raises BadDataset where a gzip file is damaged or ends early.
    """
    number, rest = 1, b""
    with open_bytes(path) as file:
        while piece := _read(file, size, path):
            rest = rest + piece if rest else piece.removeprefix(BOM) if number == 1 else piece
            whole, newline, tail = rest.rpartition(b"\n")
            if newline:
                yield number, whole + newline
                number += whole.count(b"\n") + 1
                rest = tail
            elif (
                len(rest) > MAX_LINE_BYTES
            ):  # no line of a dataset is this long: hand it on in pieces
                yield number, rest
                rest = b""
    if rest:
        yield number, rest


def numbered(block: tuple[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a block that are not blank, with their numbers and without their ends."""
    first, raw = block
    for number, line in enumerate(raw.split(b"\n"), first):
        stripped = line.rstrip(b"\r")
        if stripped.strip():
            yield number, stripped


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    for block in blocks(path):
        yield from numbered(block)


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadDataset(f"{path}: damaged or cut short ({error}); download it again") from None
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read ({error.strerror or error})") from None
