"""TFLite model metadata: what Android Studio, ML Kit and MediaPipe read from a model file.

The format is the flatbuffer schema ``metadata_schema.fbs`` (file identifier M001) of tflite-support.
Its Python package is no longer maintained, so the few tables that a classifier needs are written here;
slot numbers are the positions of the fields in the schema.
"""

import io
import zipfile
from collections.abc import Sequence

import flatbuffers
from flatbuffers.number_types import Float32Flags, UOffsetTFlags

from mf_deploy import __version__
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.target import INPUT_NAME, OUTPUT_NAME, ExportOptions

ENTRY_NAME = b"TFLITE_METADATA"
LABELS_FILE = "labels.txt"

FILE_IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"
TENSOR_AXIS_LABELS = 2  # AssociatedFileType
RGB = 1  # ColorSpaceType
FEATURE, IMAGE = 1, 2  # ContentProperties
NORMALIZATION = 1  # ProcessUnitOptions


def describe(graph: DeployGraph, scheme: str) -> str:
    """One line for people: model, precision, input and classes."""
    side = graph.record.preprocessing.input_size
    source = graph.record.source
    return f"{source.name}, {scheme}, {side}x{side} RGB to {source.num_classes} class logits"


def build_metadata(graph: DeployGraph, scheme: str, options: ExportOptions) -> bytes:
    """The ModelMetadata flatbuffer of an image classifier with one input and one output."""
    writer = _Writer()
    name = writer.text(graph.record.source.name)
    description = writer.text(describe(graph, scheme))
    subgraph = writer.table(
        10, {2: writer.tables([_image(writer, graph, options)]), 3: writer.tables([_logits(writer, graph)])}
    )
    model = writer.table(
        8,
        {
            0: name,
            1: description,
            2: writer.text(__version__),
            3: writer.tables([subgraph]),
            7: writer.text(MIN_PARSER_VERSION),
        },
    )
    writer.builder.Finish(model, file_identifier=FILE_IDENTIFIER)
    return bytes(writer.builder.Output())


def label_archive(labels: list[str] | None) -> bytes:
    """The associated file, as the zip archive that the format appends to the model file."""
    if labels is None:
        return b""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as stream:
        lines = "".join(" ".join(label.split()) + "\n" for label in labels)
        stream.writestr(zipfile.ZipInfo(LABELS_FILE), lines)
    return archive.getvalue()


def _image(writer: "_Writer", graph: DeployGraph, options: ExportOptions) -> int:
    """TensorMetadata of the input; mean and std are in units of pixel values, 0 to 255."""
    preprocessing = graph.record.preprocessing
    mean, std = [0.0], [1.0]
    if options.input == "float":
        mean = [255 * value for value in preprocessing.mean]
        std = [255 * value for value in preprocessing.std]
    size = writer.table(2, uints={0: preprocessing.input_size, 1: preprocessing.input_size})
    properties = writer.table(2, {1: size}, bytes_={0: RGB})
    content = writer.table(3, {1: properties}, bytes_={0: IMAGE})
    normalization = writer.table(2, {0: writer.floats(mean), 1: writer.floats(std)})
    unit = writer.table(2, {1: normalization}, bytes_={0: NORMALIZATION})
    highest = [(255 - m) / s for m, s in zip(mean, std, strict=True)]
    lowest = [-m / s for m, s in zip(mean, std, strict=True)]
    stats = writer.table(2, {0: writer.floats(highest), 1: writer.floats(lowest)})
    return writer.table(
        7,
        {
            0: writer.text(INPUT_NAME),
            1: writer.text("RGB picture, rows first"),
            3: content,
            4: writer.tables([unit]),
            5: stats,
        },
    )


def _logits(writer: "_Writer", graph: DeployGraph) -> int:
    content = writer.table(3, {1: writer.table(0)}, bytes_={0: FEATURE})
    fields = {
        0: writer.text(OUTPUT_NAME),
        1: writer.text("One score a class, before softmax"),
        3: content,
    }
    if graph.record.labels is not None:
        file_name = writer.text(LABELS_FILE)
        file = writer.table(5, {0: file_name}, bytes_={2: TENSOR_AXIS_LABELS})
        fields[6] = writer.tables([file])
    return writer.table(7, fields)


class _Writer:
    """The flatbuffer builder with whole tables and vectors as its steps; each returns an offset."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return self.builder.CreateString(value)

    def floats(self, values: Sequence[float]) -> int:
        self.builder.StartVector(Float32Flags.bytewidth, len(values), Float32Flags.bytewidth)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return self.builder.EndVector()

    def tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(UOffsetTFlags.bytewidth, len(offsets), UOffsetTFlags.bytewidth)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def table(
        self,
        slots: int,
        offsets: dict[int, int] | None = None,
        bytes_: dict[int, int] | None = None,
        uints: dict[int, int] | None = None,
    ) -> int:
        """A table with room for ``slots`` fields; each dict maps a slot to its value."""
        self.builder.StartObject(slots)
        for slot, offset in (offsets or {}).items():
            self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, value in (bytes_ or {}).items():
            self.builder.PrependUint8Slot(slot, value, 0)
        for slot, value in (uints or {}).items():
            self.builder.PrependUint32Slot(slot, value, 0)
        return self.builder.EndObject()
