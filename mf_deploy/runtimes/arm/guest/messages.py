"""The language between host and guest; both import it.

A message is a length (4 bytes, little-endian), so many bytes of JSON, and the arrays that its ``arrays``
describes: raw, in order.
"""

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np


def send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message."""
    described = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read one message; EOFError when the other end is gone."""
    header: dict[str, Any] = json.loads(_exactly(stream, *struct.unpack("<I", _exactly(stream, 4))))
    arrays = []
    for described in header.pop("arrays"):
        dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
        data = _exactly(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return header, arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
