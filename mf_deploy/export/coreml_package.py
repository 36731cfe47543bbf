"""The Core ML package on disk: class labels, the words that Xcode shows, and the same bytes every time."""

import json
import shutil
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mf_deploy import __version__
from mf_deploy.artifact import sha256_of
from mf_deploy.export.target import INPUT_NAME, OUTPUT_NAME
from mf_deploy.models.stored import ModelRecord

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2, Model_pb2

PROBABILITIES_NAME = "probabilities"
LABEL_NAME = "classLabel"
LABEL_PROBABILITIES_NAME = "classLabel_probs"

_CONTENT = "com.apple.CoreML"
_CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"


def make_classifier(spec: "Model_pb2.Model", labels: list[str]) -> None:
    """Turn the output ``probabilities`` into Core ML's ``classLabel`` and its dictionary, in place.

    Apps then get ``VNClassificationObservation`` from Vision and Xcode lists the labels, while every other
    output, such as ``logits``, stays a tensor. coremltools can make a classifier only of a model whose
    single output is the probabilities; with a second output its conversion fails (version 9.0).
    """
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    _add_classify(block.operations.add(), labels)
    kept = [name for name in block.outputs if name != PROBABILITIES_NAME]
    block.outputs[:] = [LABEL_NAME, LABEL_PROBABILITIES_NAME, *kept]

    description = spec.description
    features = [feature for feature in description.output if feature.name != PROBABILITIES_NAME]
    del description.output[:]
    description.output.add(name=LABEL_NAME).type.stringType.SetInParent()
    probabilities = description.output.add(name=LABEL_PROBABILITIES_NAME).type.dictionaryType
    probabilities.stringKeyType.SetInParent()
    description.output.extend(features)
    description.predictedFeatureName = LABEL_NAME
    description.predictedProbabilitiesName = LABEL_PROBABILITIES_NAME


def _add_classify(operation: "MIL_pb2.Operation", labels: list[str]) -> None:
    from coremltools.proto import MIL_pb2

    text = MIL_pb2.DataType.STRING
    operation.type = "classify"
    operation.inputs["probabilities"].arguments.add(name=PROBABILITIES_NAME)
    classes = operation.inputs["classes"].arguments.add().value
    classes.type.listType.type.tensorType.dataType = text
    classes.type.listType.length.constant.size = len(labels)
    for label in distinct(labels):
        value = classes.immediateValue.list.values.add()
        value.type.tensorType.dataType = text
        value.immediateValue.tensor.strings.values.append(label)
    operation.outputs.add(name=LABEL_NAME).type.tensorType.dataType = text
    table = operation.outputs.add(name=LABEL_PROBABILITIES_NAME).type.dictionaryType
    table.keyType.tensorType.dataType = text
    table.valueType.tensorType.dataType = MIL_pb2.DataType.FLOAT64
    name = operation.attributes["name"]
    name.type.tensorType.dataType = text
    name.immediateValue.tensor.strings.values.append("classify")


def distinct(labels: list[str]) -> list[str]:
    """The labels, each repeated one (ImageNet has two cranes) with its index: they are dictionary keys."""
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)]


def describe(spec: "Model_pb2.Model", record: ModelRecord, scheme: str) -> None:
    """Fill in what Xcode shows of a model: description, author, licence, version, inputs and outputs."""
    source, preprocessing = record.source, record.preprocessing
    metadata = spec.description.metadata
    metadata.shortDescription = (
        f"{source.name}, {scheme}: {source.num_classes} classes, "
        f"from a picture of {preprocessing.input_size} x {preprocessing.input_size} pixels."
    )
    metadata.author = "The mf-deploy authors"
    metadata.license = "Apache-2.0 (the network); the weights keep the licence of their checkpoint"
    metadata.versionString = __version__
    metadata.userDefined.pop(_CONVERSION_DATE, None)
    metadata.userDefined["mf_deploy.model"] = source.name
    metadata.userDefined["mf_deploy.scheme"] = scheme
    metadata.userDefined["mf_deploy.preprocessing"] = preprocessing.model_dump_json()
    if source.checkpoint_sha256:
        metadata.userDefined["mf_deploy.checkpoint_sha256"] = source.checkpoint_sha256
    if record.labels:
        metadata.userDefined["mf_deploy.labels"] = json.dumps(record.labels)
    texts = {
        INPUT_NAME: "The picture, resized and cropped as in mf_deploy.preprocessing",
        OUTPUT_NAME: "One score per class, before softmax",
        LABEL_NAME: "The most likely class",
        LABEL_PROBABILITIES_NAME: "The probability of each class",
    }
    for feature in [*spec.description.input, *spec.description.output]:
        feature.shortDescription = texts[feature.name]
        if feature.name == INPUT_NAME and feature.type.HasField("multiArrayType"):
            feature.shortDescription += ", divided by 255, minus mean, divided by std; channels first"


def share_constants(spec: "Model_pb2.Model") -> None:
    """Let operations with equal constants read one, in place.

    coremltools writes strides, paddings and axes anew for every operation: a third of a quantized model's
    program, and 2 % of its package.
    """
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    first: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    kept = []
    for operation in block.operations:
        if operation.type == "const":
            output = operation.outputs[0]
            parts = (output.type, operation.attributes["val"])
            key = b"".join(part.SerializeToString(deterministic=True) for part in parts)
            if first.setdefault(key, output.name) != output.name and output.name not in block.outputs:
                shared[output.name] = first[key]
                continue
        for operand in operation.inputs.values():
            for argument in operand.arguments:
                if argument.name in shared:
                    argument.name = shared[argument.name]
        kept.append(type(operation).FromString(operation.SerializeToString()))
    del block.operations[:]
    block.operations.extend(kept)


def write_package(spec: "Model_pb2.Model", weights: Path, package: Path) -> None:
    """Write a ``.mlpackage`` with ``spec`` and the file ``weights``; the same input gives the same bytes.

    coremltools' own writer draws random identifiers and serializes maps in a random order.
    """
    content = package / "Data" / _CONTENT
    (content / "weights").mkdir(parents=True)
    model, blob = content / "model.mlmodel", content / "weights" / "weight.bin"
    model.write_bytes(spec.SerializeToString(deterministic=True))
    shutil.copyfile(weights, blob)
    entries = {
        _identifier(model): {
            "author": _CONTENT,
            "description": "CoreML Model Specification",
            "name": "model.mlmodel",
            "path": f"{_CONTENT}/model.mlmodel",
        },
        _identifier(blob): {
            "author": _CONTENT,
            "description": "CoreML Model Weights",
            "name": "weights",
            "path": f"{_CONTENT}/weights",
        },
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(model),
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")


def _identifier(path: Path) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {sha256_of(path)}")).upper()
