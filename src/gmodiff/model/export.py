"""The compact regressor as an ONNX file: pre-processing inside, any size and number of frames, weights stored in half precision."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gmodiff.errors import MissingDependencyError
from gmodiff.model.regressor import STRIDE, Regressor

INPUTS = ("linear", "stops", "coverage", "merged", "encoded")
OUTPUTS = ("change", "residual", "degradation")
OPSET = 18
HALF_FROM = 64
"""Smaller tensors stay in single precision: they weigh nothing, and some are scales."""


class _OnePicture(nn.Module):
    """The network for one bracket: no batch dimension in front of the frames; the mask as a probability."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, linear: Tensor, stops: Tensor, coverage: Tensor, merged: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        estimate = self.network(linear[None], stops[None], coverage[None], merged, encoded, with_mask=True)
        return estimate.change, estimate.residual.abs().amax(dim=1, keepdim=True), torch.sigmoid(estimate.degradation)


def export_onnx(network: Regressor, path: Path) -> None:
    """Write the ONNX file.

    Inputs: linear (n, 3, H, W), stops (n,), coverage (n, 1, H, W), merged and encoded (1, 3, H, W), as `Regressor.forward`, n >= 2, H and
    W multiples of STRIDE. Outputs: change (1, 3, H, W); residual (1, 1, H, W), the largest of its three channels, absolute; degradation
    (1, 1, H / 4, W / 4), 0..1. Raises MissingDependencyError without the packages that export.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter asks for it late, with a long trace)
    except ImportError:
        raise MissingDependencyError('exporting needs onnx and onnxscript: pip install "gmodiff[train]"') from None
    side = 4 * STRIDE
    example = (
        torch.rand(3, 3, side, side),
        torch.tensor([0.0, -2.0, 2.0]),
        torch.ones(3, 1, side, side),
        torch.rand(1, 3, side, side),
        torch.rand(1, 3, side, side),
    )
    frames = torch.export.Dim("frames", min=2, max=16)
    rows, columns = (STRIDE * torch.export.Dim(n, min=2, max=4096) for n in ("rows", "columns"))
    sizes: dict[str, Any] = {
        "linear": {0: frames, 2: rows, 3: columns},
        "stops": {0: frames},
        "coverage": {0: frames, 2: rows, 3: columns},
        "merged": {2: rows, 3: columns},
        "encoded": {2: rows, 3: columns},
    }
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are nobody's business here
        made = torch.onnx.export(
            _OnePicture(network).eval(),
            example,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamic_shapes=sizes,
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
