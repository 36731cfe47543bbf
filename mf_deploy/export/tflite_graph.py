"""A TFLite model that can be changed: the flatbuffer as objects, with the few edits that passes need."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import flatbuffers
import numpy as np

from mf_deploy.export.tflite_file import module_path

FILE_IDENTIFIER = b"TFL3"
CONSTANT_ALIGNMENT = 16

# Oldest versions of the operators that know int8, as the schema counts them; a runtime refuses a file
# that asks for more than it has, and computes nonsense where a file claims less than it holds.
INT8_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 6,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "MAX_POOL_2D": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "SLICE": 2,
    "TRANSPOSE": 2,
}


class TfliteGraph:
    """The main subgraph of a model; its ``tensors`` and ``operators`` are the schema's objects."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self._schema = schema
        self.content = flatbuffer_utils.read_model_from_bytearray(model)
        self.main = self.content.subgraphs[0]
        self._codes = {name: code for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
        self._kinds = {code: name for name, code in self._codes.items()}
        self._types = {
            np.dtype(name.lower()): code
            for name, code in vars(schema.TensorType).items()
            if name in ("FLOAT32", "FLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64")
        }
        self._dtypes = {code: dtype for dtype, code in self._types.items()}

    @property
    def tensors(self) -> list[Any]:
        tensors: list[Any] = self.main.tensors
        return tensors

    @property
    def operators(self) -> list[Any]:
        operators: list[Any] = self.main.operators
        return operators

    def kind(self, operator: Any) -> str:
        """The schema's name of the operator, e.g. ``CONV_2D``."""
        code = self.content.operatorCodes[operator.opcodeIndex]
        return self._kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def dtype(self, tensor: int) -> np.dtype[Any] | None:
        """The tensor's type; None for the rarer ones."""
        return self._dtypes.get(self.tensors[tensor].type)

    def type_code(self, dtype: Any) -> int:
        """The schema's number of a type."""
        return int(self._types[np.dtype(dtype)])

    def shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.tensors[tensor].shape
        return tuple(int(size) for size in (shape if shape is not None else ()))

    def constant(self, tensor: int) -> np.ndarray | None:
        """The values of a constant tensor; None for what is computed."""
        data = self.content.buffers[self.tensors[tensor].buffer].data if tensor >= 0 else None
        if data is None or not len(data):
            return None
        dtype = self.dtype(tensor)
        assert dtype is not None
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype).reshape(self.shape(tensor))

    def add_tensor(self, name: str, shape: Iterable[int], dtype: Any, quantization: Any = None) -> int:
        """A new tensor without values."""
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(list(shape), np.int32)
        tensor.type, tensor.buffer, tensor.quantization = self.type_code(dtype), 0, quantization
        tensor.hasRank = True
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_constant(self, name: str, values: np.ndarray, quantization: Any = None) -> int:
        """A new constant tensor."""
        index = self.add_tensor(name, values.shape, values.dtype, quantization)
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.tensors[index].buffer = len(self.content.buffers)
        self.content.buffers.append(buffer)
        return index

    def quantization(self, scale: np.ndarray | float, zero_point: int = 0, axis: int = 0) -> Any:
        """Quantization of a tensor, or of each slice along ``axis``: real = scale · (code − zero point)."""
        scales = np.atleast_1d(np.asarray(scale, np.float32))
        made = self._schema.QuantizationParametersT()
        made.scale, made.zeroPoint = scales, np.full(len(scales), zero_point, np.int64)
        made.quantizedDimension = axis
        return made

    def operator(self, kind: str, inputs: list[int], outputs: list[int]) -> Any:
        """A new operator without options, not yet part of the graph."""
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self.opcode(kind)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        return operator

    def product_options(self, transposed: bool) -> tuple[int, Any]:
        """Type and value of the options of a BATCH_MATMUL, perhaps with its second operand transposed."""
        options = self._schema.BatchMatMulOptionsT()
        options.adjY = transposed
        return self._schema.BuiltinOptions.BatchMatMulOptions, options

    def opcode(self, kind: str) -> int:
        """Index of the operator code of ``kind``, added to the model where it is missing."""
        for index, code in enumerate(self.content.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == self._codes[kind]:
                return index
        code = self._schema.OperatorCodeT()
        code.builtinCode = self._codes[kind]
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = INT8_VERSIONS.get(kind, 1)
        self.content.operatorCodes.append(code)
        return len(self.content.operatorCodes) - 1

    def needs_int8(self, operator: Any) -> None:
        """Note in the file that the operator computes with int8 codes."""
        code = self.content.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, INT8_VERSIONS.get(self.kind(operator), 1))

    def add_metadata(self, name: bytes, data: bytes) -> None:
        """An entry of the model's metadata; one of the same name is replaced."""
        buffer, entry = self._schema.BufferT(), self._schema.MetadataT()
        buffer.data = np.frombuffer(data, np.uint8)
        entry.name, entry.buffer = name, len(self.content.buffers)
        self.content.buffers.append(buffer)
        others = [each for each in self.content.metadata or [] if each.name != name]
        self.content.metadata = [*others, entry]

    def shorten_names(self) -> None:
        """Name tensors after the module that made them; the converter's names are a sixth of a w8 file.

        A number tells apart the tensors of one module.
        """
        used: Counter[str] = Counter()
        for tensor in self.tensors:
            path = module_path(tensor.name.decode())
            used[path] += 1
            tensor.name = f"{path};{used[path]}".encode()

    def prune(self) -> None:
        """Drop tensors and buffers that nothing uses any more."""
        ends = [*self.main.inputs, *self.main.outputs]
        parts = [list(each.inputs) + list(each.outputs) for each in self.operators]
        used = sorted({int(index) for part in (*parts, ends) for index in part if index >= 0})
        place = {-1: -1, **{old: new for new, old in enumerate(used)}}
        self.main.tensors = [self.tensors[index] for index in used]
        for operator in self.operators:
            operator.inputs = np.array([place[int(i)] for i in operator.inputs], np.int32)
            operator.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
        self.main.inputs = np.array([place[int(i)] for i in self.main.inputs], np.int32)
        self.main.outputs = np.array([place[int(i)] for i in self.main.outputs], np.int32)
        for signature in self.content.signatureDefs or []:
            for each in (*signature.inputs, *signature.outputs):
                each.tensorIndex = place[each.tensorIndex]
        self._prune_buffers()

    def _prune_buffers(self) -> None:
        """The first buffer is the empty one that every computed tensor names."""
        holders = [*self.main.tensors, *(self.content.metadata or [])]
        used = sorted({0, *(holder.buffer for holder in holders)})
        place = {old: new for new, old in enumerate(used)}
        self.content.buffers = [self.content.buffers[index] for index in used]
        for holder in holders:
            holder.buffer = place[holder.buffer]
        self.content.metadataBuffer = None

    def serialize(self) -> bytes:
        """The flatbuffer, with equal vectors stored once."""
        builder = _SharingBuilder(1024)
        builder.Finish(self.content.Pack(builder), file_identifier=FILE_IDENTIFIER)
        return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Stores equal vectors of numbers once: scales, zero points, shapes, constants.

    Zero points alone are 8 bytes for every output channel of a quantized layer, all of them zero.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            if x.dtype == np.uint8:  # a constant: the schema promises its readers this alignment
                self.Prep(CONSTANT_ALIGNMENT, x.size)
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]
