"""The end of every TFLite export: names, description, metadata, labels, and what the manifest says of it."""

from importlib.metadata import version

from mf_deploy.artifact import TensorInfo
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.target import INPUT_NAME, OUTPUT_NAME, ExportOptions, WrittenModel
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_interface import PICTURE_ZERO, integer_input
from mf_deploy.export.tflite_metadata import ENTRY_NAME, build_metadata, describe, label_archive

MODEL_FILE = "model.tflite"
TOOLS = ("litert_torch", "ai_edge_litert")


def finish(tflite: TfliteGraph, graph: DeployGraph, scheme: str, options: ExportOptions) -> bytes:
    """The model file: tensors named as the signature names them, a description, metadata and labels."""
    if options.input != "float":
        integer_input(tflite, options.input)
    tflite.tensors[int(tflite.main.inputs[0])].name = INPUT_NAME.encode()
    tflite.tensors[int(tflite.main.outputs[0])].name = OUTPUT_NAME.encode()
    tflite.content.description = describe(graph, scheme).encode()
    tflite.add_metadata(ENTRY_NAME, build_metadata(graph, scheme, options))
    tflite.prune()
    return tflite.serialize() + label_archive(graph.record.labels)


def written(graph: DeployGraph, options: ExportOptions, tflite: TfliteGraph) -> WrittenModel:
    """What the manifest says of the input and the output of a finished model."""
    side = graph.record.preprocessing.input_size
    shape = (graph.batch, side, side, 3)
    taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NHWC", dtype="float32")
    if options.input != "float":
        zero = PICTURE_ZERO[options.input]
        integers = {"dtype": options.input, "range": (zero, zero + 255), "scale": 1.0, "zero_point": zero}
        taken = taken.model_copy(update=integers)
    classes = graph.record.source.num_classes
    logits = TensorInfo(name=OUTPUT_NAME, shape=(graph.batch, classes), layout="NC", dtype="float32")
    if options.output != "float":
        codes = tflite.tensors[int(tflite.main.outputs[0])].quantization
        scale, zero_point = float(codes.scale[0]), int(codes.zeroPoint[0])
        integers = {"dtype": options.output, "scale": scale, "zero_point": zero_point}
        logits = logits.model_copy(update=integers)
    tools = {name.replace("_", "-"): version(name) for name in TOOLS}
    return WrittenModel(MODEL_FILE, taken, [logits], tools)
