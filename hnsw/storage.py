"""The file format of an index: JSON header, raw arrays, checksums. Nothing in a file is ever executed.

8 bytes   magic, HNSWIDX and a newline
4 bytes   version, little-endian
8 bytes   length of the header in bytes
4 bytes   CRC-32 of the header
header    JSON, UTF-8: the settings, and for each array its name, dtype, shape, offset, and CRC-32
arrays    C order, little-endian, each at a multiple of 64 bytes from the start of the file
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np

MAGIC = b"HNSWIDX\n"
VERSION = 1
PREFIX = struct.Struct("<8sIQI")
ALIGNMENT = 64
MAPPED = ("vectors", "links0", "upper")  # the arrays that mmap leaves on disk
DTYPES = ("<f4", "<i4", "<i8", "|i1", "|u1")


class FileError(ValueError):
    """A file that is not a whole, undamaged index of the kind that was asked for."""


def _layout(header: dict, arrays: dict[str, np.ndarray]) -> tuple[bytes, list[tuple[int, np.ndarray]]]:
    """The bytes before the arrays, and each array with its offset."""
    little = {name: np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    entries = [
        {"name": name, "dtype": a.dtype.str, "shape": list(a.shape), "crc32": zlib.crc32(a.data if a.size else b"")}
        for name, a in little.items()
    ]
    # Offsets are part of the header, whose length they depend on: leave room for the longest.
    room = len(json.dumps({**header, "arrays": entries})) + len(entries) * 40
    offset, placed = -(-(PREFIX.size + room) // ALIGNMENT) * ALIGNMENT, []
    for entry, array in zip(entries, little.values()):
        entry["offset"] = offset
        placed.append((offset, array))
        offset = -(-(offset + array.nbytes) // ALIGNMENT) * ALIGNMENT
    text = json.dumps({**header, "arrays": entries, "bytes": offset}).encode()
    return PREFIX.pack(MAGIC, VERSION, len(text), zlib.crc32(text)) + text, placed


def _emit(file, header: dict, arrays: dict[str, np.ndarray]) -> None:
    start, placed = _layout(header, arrays)
    position = file.write(start)
    for offset, array in placed:
        position += file.write(b"\0" * (offset - position))
        if array.nbytes:
            position += file.write(array.data.cast("B"))
    file.write(b"\0" * (-position % ALIGNMENT))


def write(path: Path, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write `path` so that it is either the old file or the whole new one, even if the machine stops midway."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _emit(file, header, arrays)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's own mode shuts out everybody else
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def dump(header: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of the file."""
    import io

    buffer = io.BytesIO()
    _emit(buffer, header, arrays)
    return buffer.getvalue()


def read(path: Path, mmap: bool = False) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of the file `path`. FileError names what is wrong with it.

    With `mmap`, the arrays named in MAPPED are copy-on-write views of the file. The links among them are read once to
    verify them; the vectors, which can make an answer wrong but nothing else, are not.
    """
    if not mmap:
        return parse(path.read_bytes(), str(path))
    if path.stat().st_size == 0:
        raise FileError(f"{path}: the file is empty")
    return parse(np.memmap(path, dtype=np.uint8, mode="c"), str(path), copy=False)


def parse(data: bytes | np.ndarray, source: str, copy: bool = True) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays from the file's bytes; `source` names them in errors."""
    raw = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
    if len(raw) < PREFIX.size or raw[: len(MAGIC)].tobytes() != MAGIC:
        if MAGIC.startswith(raw[: len(MAGIC)].tobytes()):
            raise FileError(f"{source}: the file is cut short ({len(raw)} bytes)")
        raise FileError(f"{source}: not an hnsw index")
    _, version, length, checksum = PREFIX.unpack(raw[: PREFIX.size].tobytes())
    if version != VERSION:
        raise FileError(f"{source}: format version {version}; this code reads version {VERSION}")
    text = raw[PREFIX.size : PREFIX.size + length].tobytes()
    if len(text) < length:
        raise FileError(f"{source}: the file is cut short ({len(raw)} bytes)")
    if zlib.crc32(text) != checksum:
        raise FileError(f"{source}: the header is damaged (its checksum differs)")
    try:
        header = json.loads(text)
        total, arrays = header["bytes"], {}
        if len(raw) < total:
            raise FileError(f"{source}: the file is cut short ({len(raw)} of {total} bytes)")
        if len(raw) > total:
            raise FileError(f"{source}: {len(raw) - total} bytes follow the end of the index")
        for entry in header["arrays"]:
            name, shape = entry["name"], tuple(entry["shape"])
            if entry["dtype"] not in DTYPES or any(not isinstance(s, int) or s < 0 for s in shape):
                raise FileError(f"{source}: {name} has dtype {entry['dtype']!r} and shape {shape}")
            dtype = np.dtype(entry["dtype"])
            size, offset = dtype.itemsize, entry["offset"]
            for s in shape:
                size *= s
            if not 0 <= offset <= total - size or offset % ALIGNMENT:
                raise FileError(f"{source}: {name} lies outside the file")
            part = raw[offset : offset + size]
            stays = not copy and name in MAPPED
            if not (stays and name == "vectors") and zlib.crc32(part) != entry["crc32"]:
                raise FileError(f"{source}: {name} is damaged (its checksum differs)")
            array = part.view(dtype).reshape(shape)
            arrays[name] = array if stays else _own(array)
    except FileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{source}: the header is damaged ({error!r})") from None
    return header, arrays


def _own(array: np.ndarray) -> np.ndarray:
    """A copy in native byte order that begins at a cache line."""
    raw = np.empty(array.nbytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    own = raw[start : start + array.nbytes].view(array.dtype.newbyteorder("=")).reshape(array.shape)
    own[...] = array
    return own
