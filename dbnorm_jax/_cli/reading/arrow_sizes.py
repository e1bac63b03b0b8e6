"""What an Arrow file declares that its compressed buffers unpack to, before anything unpacks.

pyarrow makes room for whatever a buffer declares. The layout is that of Message.fbs and File.fbs
of the Arrow format, flatbuffers: a table is a place whose vtable says where its fields are.
"""

import struct
from collections.abc import Iterator

_MAGIC = b"ARROW1"
_BLOCK = struct.Struct("<qiiq")  # offset, bytes of metadata, padding, bytes of the body
_BUFFER = struct.Struct("<qq")  # offset in the body, length
_CONTINUED = 0xFFFFFFFF


class DamagedError(ValueError):
    """Places that lead outside of the file."""


def unpacked(data: memoryview, most: int, *, stream: bool) -> int:
    """Bytes that compressed buffers declare, 0 where none is compressed; stops beyond `most`.

    `data` is a whole IPC file, read by its footer, or with `stream` message by message.
    """
    total = 0
    try:
        for metadata, body in _stream(data) if stream else _file(data):
            batch = _batch(data, metadata)
            if batch is None or not _field(data, batch, 3):
                continue
            for offset, length in _vector(data, batch, 2, _BUFFER):
                if length > 0:
                    declared = _number(data, "<q", body + offset)
                    total += declared if declared >= 0 else length  # -1: as it is
                if total > most:
                    return total
    except struct.error as error:
        raise DamagedError(str(error)) from None
    return total


def _file(data: memoryview) -> Iterator[tuple[int, int]]:
    """Where the metadata of each message begins, and where its body does."""
    end = len(data) - len(_MAGIC) - 4
    footer = _pointed(data, end - _number(data, "<i", end))
    for index in (2, 3):  # dictionaries, record batches
        for offset, size, _, _ in _vector(data, footer, index, _BLOCK):
            yield _start(data, offset)[0], offset + size


def _stream(data: memoryview) -> Iterator[tuple[int, int]]:
    place = 0
    while place + 4 <= len(data):
        metadata, size = _start(data, place)
        if size <= 0:  # the end
            return
        body = metadata + size
        yield metadata, body
        length = _field(data, _pointed(data, metadata), 3)
        place = body + (max(_number(data, "<q", length), 0) if length else 0)


def _start(data: memoryview, place: int) -> tuple[int, int]:
    """Where metadata begin and their size: before it, since version 0.15, a mark."""
    if _number(data, "<I", place) == _CONTINUED:
        return place + 8, _number(data, "<i", place + 4)
    return place + 4, _number(data, "<i", place)


def _batch(data: memoryview, metadata: int) -> int | None:
    """The table of the record batch in a message, None where it has none."""
    message = _pointed(data, metadata)
    kind, header = _field(data, message, 1), _field(data, message, 2)
    if not kind or not header:
        return None
    table, number = _pointed(data, header), _number(data, "<B", kind)
    if number == 2:  # a dictionary's
        inner = _field(data, table, 1)
        return _pointed(data, inner) if inner else None
    return table if number == 3 else None


# --- flatbuffers ---------------------------------------------------------------------------------


def _number(data: memoryview, form: str, place: int) -> int:
    if place < 0:  # `struct` would count from the end
        raise struct.error("a place before the file")
    number: int = struct.unpack_from(form, data, place)[0]
    return number


def _pointed(data: memoryview, place: int) -> int:
    return place + _number(data, "<I", place)


def _field(data: memoryview, table: int, index: int) -> int:
    """Where a field of a table is, 0 where it has none."""
    vtable = table - _number(data, "<i", table)
    if 4 + 2 * index >= _number(data, "<H", vtable):
        return 0
    offset = _number(data, "<H", vtable + 4 + 2 * index)
    return table + offset if offset else 0


def _vector(
    data: memoryview, table: int, index: int, element: struct.Struct
) -> Iterator[tuple[int, ...]]:
    """The elements of a vector, none where a table has none."""
    field = _field(data, table, index)
    if field:
        place = _pointed(data, field)
        for number in range(_number(data, "<I", place)):
            yield element.unpack_from(data, place + 4 + element.size * number)
