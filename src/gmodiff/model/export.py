"""Networks as ONNX files: pre-processing inside, any size and number of frames, weights stored in half precision."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmodiff.errors import MissingDependencyError
from gmodiff.model.on_arrays import OnArrays
from gmodiff.model.regressor import STRIDE

OPSET = 18
HALF_FROM = 64
"""Smaller tensors stay in single precision: they weigh nothing, and some are scales."""


def export_onnx(network: OnArrays, path: Path) -> None:
    """Write the ONNX file of a network, for pictures whose sides are multiples of STRIDE: inputs and outputs as its class says.

    Raises MissingDependencyError without the packages that export.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter asks for it late, with a long trace)
    except ImportError:
        raise MissingDependencyError('exporting needs onnx and onnxscript: pip install "gmodiff[train]"') from None
    frames = torch.export.Dim("frames", min=2, max=16)
    rows, columns = (torch.export.Dim(n, min=2, max=4096) for n in ("rows", "columns"))
    example = network.example()
    side = max(max(x.shape[-2:], default=0) for x in example if x.ndim > 1)
    sizes: list[dict[int, Any]] = []
    for name, x in zip(network.inputs, example, strict=True):
        fold = STRIDE * x.shape[-1] // side if x.ndim > 1 else 0
        picture = {x.ndim - 2: fold * rows, x.ndim - 1: fold * columns} if fold > 1 else {x.ndim - 2: rows, x.ndim - 1: columns}
        sizes.append(({0: frames} if name in ("linear", "stops", "coverage") else {}) | (picture if fold else {}))
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are nobody's business here
        made = torch.onnx.export(
            network.eval(),
            example,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            opset_version=OPSET,
            dynamic_shapes=tuple(sizes),
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    _take_biases_out(model)
    _halve(model)
    onnx.checker.check_model(model)
    unfinished = path.with_name(f".{path.name}")
    onnx.save(model, str(unfinished))
    unfinished.replace(path)


def _take_biases_out(model: Any) -> None:
    """A convolution's bias as an addition of its own: OpenVINO loads that in less time, and puts it back into the convolution."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.append(node)
        if node.op_type != "Conv" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        bias, output = node.input[2], node.output[0]
        column = f"{bias}_column"
        if column not in constants:
            constants[column] = numpy_helper.from_array(numpy_helper.to_array(constants[bias]).reshape(1, -1, 1, 1), column)
            model.graph.initializer.append(constants[column])
        bare = model.graph.node[-1]
        del bare.input[2]
        bare.output[0] = f"{output}_bare"
        model.graph.node.append(helper.make_node("Add", [f"{output}_bare", column], [output], name=f"{node.name}_bias"))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _halve(model: Any) -> None:
    """Store large float32 constants as float16, each followed by a cast back: engines fold that when they load."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < HALF_FROM:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT, name=f"{name}_single"))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    # What the exporter notes about source files has no place in a file that others get.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
