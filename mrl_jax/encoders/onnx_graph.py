"""Write an ONNX graph node by node: what the `onnx` functions of the encoders are given.

A converter of JAX programs would make eight times as many nodes of a transformer, most of them shape arithmetic, and
needs a dozen packages.
"""

from typing import Any

import numpy as np


class Graph:
    """The nodes of an ONNX graph: `graph("Add", a, b)` adds one and returns the name of its result.

    Operands are names, or arrays, which become constants.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *operands: Any, **attributes: Any) -> str:
        return self.several(1, operator, *operands, **attributes)[0]

    def several(self, results: int, operator: str, *operands: Any, **attributes: Any) -> list[str]:
        """Add a node with several results; returns their names."""
        from onnx import helper

        inputs = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in operands]
        outputs = [f"{operator}_{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def constant(self, array: np.ndarray) -> str:
        """Add a constant, a Python float as float32; returns its name."""
        from onnx import numpy_helper

        if array.dtype == np.float64 and array.ndim == 0:
            array = array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def linear(self, x: str, parameters: Any) -> str:
        """x @ kernel, plus the bias where there is one."""
        product = self("MatMul", x, as_float32(parameters["kernel"]))
        return self("Add", product, as_float32(parameters["bias"])) if "bias" in parameters else product

    def cast(self, x: str, dtype: str) -> str:
        """`x` as `float`, `double` or `bool`."""
        from onnx import TensorProto

        return self("Cast", x, to=TensorProto.DataType.Value(dtype.upper()))


def as_float32(parameter: Any) -> np.ndarray:
    """A parameter as a NumPy array, which a graph takes as a constant."""
    return np.asarray(parameter, np.float32)
