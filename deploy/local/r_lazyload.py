"""Reads character vectors out of an R package's lazy-load database (``Rdata.rdx`` + ``Rdata.rdb``).

The index maps a name to ``[offset, length]`` in the database; a record there is a big-endian length
followed by a zlib stream of R's XDR serialisation. Only what such a file of character vectors holds
is understood; anything else raises. The format: "R Internals", 1.8, "Serialization Formats".
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

_NIL, _GLOBAL, _REFERENCE = 254, 253, 255
_SYMBOL, _PAIRLIST, _CHARSXP, _LOGICAL, _INTEGER, _STRING, _LIST = 1, 2, 9, 10, 13, 16, 19
_HAS_ATTRIBUTES, _HAS_TAG = 1 << 9, 1 << 10
_LATIN1 = 1 << 14  # of a CHARSXP's 16 "gp" bits, which start at bit 12


class _Reader:
    """One pass over one serialised value."""

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialisation")
        self._data, self._at = data, 2
        self._symbols: list[str] = []
        version, _written_by, _least_reader = self._int(), self._int(), self._int()
        if version >= 3:  # names the native encoding
            self._take(self._int())

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _int(self) -> int:
        (value,) = struct.unpack(">i", self._take(4))
        return int(value)

    def value(self) -> Any:
        flags = self._int()
        kind = flags & 0xFF
        if kind in (_NIL, _GLOBAL):
            return None
        if kind == _REFERENCE:
            return self._symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self._symbols.append(self.value())
            return self._symbols[-1]
        if kind == _CHARSXP:
            size = self._int()
            if size < 0:  # NA
                return ""
            return self._take(size).decode("latin-1" if flags & _LATIN1 else "utf-8")
        if kind == _PAIRLIST:
            return self._pairs(flags)
        length = self._int()
        if kind in (_LOGICAL, _INTEGER):
            result: Any = list(struct.unpack(f">{length}i", self._take(4 * length)))
        elif kind in (_STRING, _LIST):
            result = [self.value() for _ in range(length)]
        else:
            raise ValueError(f"R type {kind} is not read here")
        if flags & _HAS_ATTRIBUTES:
            attributes = self.value()
            if "names" in attributes:
                return dict(zip(attributes["names"], result, strict=True))
        return result

    def _pairs(self, flags: int) -> dict[str, Any]:
        """A pairlist is a chain of cells: attributes?, tag?, value, rest."""
        pairs: dict[str, Any] = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _HAS_ATTRIBUTES:
                self.value()
            tag = self.value() if flags & _HAS_TAG else ""
            pairs[tag] = self.value()
            flags = self._int()
        return pairs


def read_character_vectors(database: Path) -> dict[str, list[str]]:
    """All vectors of a database; ``database`` names its ``.rdb``; the ``.rdx`` is beside."""
    index = _Reader(gzip.decompress(database.with_suffix(".rdx").read_bytes())).value()
    data = database.read_bytes()
    vectors = {}
    for name, (offset, length) in index["variables"].items():
        record = data[offset : offset + length]
        # [0, 4) the length unpacked, [4, end) a zlib stream (78 …): R's default, compression 1.
        if record[4:5] != b"\x78":
            raise ValueError(f"{name}: not compressed with zlib")
        vectors[name] = _Reader(zlib.decompress(record[4:])).value()
    return vectors
