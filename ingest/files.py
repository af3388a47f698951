"""Open the files of a dataset: compression, encoding, and the names they may have.

reads   file  *.csv, *.tsv, *.dat, *.data, *.json, *.jsonl, *.ndjson, *.parquet; all but Parquet
              also with .gz, .zst or .zip (with one file in it)
"""

from __future__ import annotations

import codecs
import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from afterclick.errors import BadDataset

_PACKED = ("", ".gz", ".zst", ".zip")
_TEXT = (".csv", ".tsv", ".dat", ".data", ".json", ".jsonl", ".ndjson")
SUFFIXES = (".parquet", *(text + packed for text in _TEXT for packed in _PACKED))
BOM = b"\xef\xbb\xbf"
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark → encoding; the longer ones first, which begin like the shorter ones."""


def stem(path: Path) -> str:
    """The name without its suffixes."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def open_bytes(path: Path, encoding: str | None = None) -> BinaryIO:
    """Open a file for reading: decompressed, and in UTF-8 if it has another encoding.

    The encoding is `encoding`, else UTF-16 or UTF-32 by the byte order mark, else UTF-8. Raises
    BadDataset if it cannot be opened.
    """
    try:
        file = _decompressed(path)
        head = file.peek(4)[:4]
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise BadDataset(f"{path}: damaged or truncated ({error}); download it again") from None
    wide = next((name for mark, name in _WIDE_MARKS.items() if head.startswith(mark)), None)
    encoding = encoding or wide
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        return cast(BinaryIO, file)
    return cast(BinaryIO, io.BufferedReader(_Recoded(file, encoding)))


def read(file: BinaryIO, size: int, path: Path) -> bytes:
    """Up to `size` bytes. Raises BadDataset for a damaged file or one of another encoding."""
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        raise BadDataset(f"{path}: damaged or truncated ({error}); download it again") from None
    except UnicodeDecodeError as error:
        raise BadDataset(
            f"{path}: is not in {error.encoding} ({error.reason}); name its encoding: --encoding"
        ) from None
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read ({error.strerror or error})") from None


def _decompressed(path: Path) -> Any:
    """A buffered binary file. Raises OSError, BadDataset for a zip file without one data file."""
    file = path.open("rb")
    mark = file.peek(4)[:4]
    if mark.startswith(b"\x1f\x8b"):
        return gzip.open(file)
    if mark == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))
    if mark == b"PK\x03\x04":
        return _only_member(path)
    return file


def _only_member(path: Path) -> Any:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise BadDataset(f"{path}: damaged or truncated ({error}); download it again") from None
    names = [name for name in archive.namelist() if name.endswith(_TEXT)]
    if len(names) != 1:
        found = f"{len(names)} data files ({', '.join(names[:5])})" if names else "no data file"
        raise BadDataset(f"{path}: contains {found}; extract it and pass the folder")
    return archive.open(names[0])


class _Recoded(io.RawIOBase):
    """A file of another encoding as UTF-8."""

    def __init__(self, file: Any, encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = self._file.read(len(buffer))
            self._rest = self._decoder.decode(piece, final=not piece).encode()
            if not piece:
                break
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
