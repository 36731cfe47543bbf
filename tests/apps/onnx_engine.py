"""ONNX Runtime at the end of a pipe, for HostBench.java: big-endian numbers in Java's DataOutput format.

In: the model's path, the threads; then inputs as raw tensors, each after its length; length 0 asks for a
profile. Out: 0 when the model is open; then logits after their number, or a profile after its length.
"""

import struct
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}


def open_session(path: str, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    (length,) = struct.unpack(">H", stdin.read(2))
    path = stdin.read(length).decode()
    (threads,) = struct.unpack(">i", stdin.read(4))
    session = open_session(path, threads)
    wanted = session.get_inputs()[0]
    stdout.write(struct.pack(">i", 0))
    stdout.flush()
    tensor = np.zeros(wanted.shape, TYPES[wanted.type])
    while header := stdin.read(4):
        (length,) = struct.unpack(">i", header)
        if length:
            tensor = np.frombuffer(stdin.read(length), TYPES[wanted.type]).reshape(wanted.shape)
            logits = session.run(None, {wanted.name: tensor})[0].astype(np.float32)
            stdout.write(struct.pack(">i", logits.size) + logits.astype(">f4").tobytes())
        else:
            profile = profile_of(path, wanted.name, tensor)
            stdout.write(struct.pack(">i", len(profile)) + profile)
        stdout.flush()


def profile_of(path: str, name: str, tensor: np.ndarray) -> bytes:
    with TemporaryDirectory() as folder:
        session = open_session(path, 1, Path(folder, "profile"))
        session.run(None, {name: tensor})
        return Path(session.end_profiling()).read_bytes()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
