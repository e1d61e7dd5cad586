"""Writes a BERT sentence encoder from ``model.safetensors`` to ONNX, without torch.

Made for all-MiniLM-L6-v2, which is published as safetensors everywhere and as ONNX only on the model
hub; works for any BERT with absolute positions and exact GELU. For one sequence with token ids ``t``:

    x = LayerNorm(word[t] + type[0] + position[0..T])
    per layer:  x = LayerNorm(x + Attention(x));  x = LayerNorm(x + W2 gelu(W1 x + b1) + b2)

The output is ``last_hidden_state`` [B, T, D]; the reader pools it. Padding is masked with -10000, as
in the original.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from agemem_mcp.errors import AssetsMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9  # read by every ONNX Runtime since 1.16
_DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the graph needs of ``config.json``."""

    width: int
    heads: int
    layers: int
    epsilon: float

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def write_onnx(weights: Path, config: Path, target: Path) -> None:
    """Write ``target`` (ONNX, float32) from a safetensors file and its ``config.json``.

    The bytes depend on the inputs alone, so the result of pinned inputs can be pinned too. Takes
    about a second and three times the size of the weights in memory.

    Raises:
        AssetsMissing: the files are not those of a BERT this writer knows.
        OSError: a file could not be read or written.
    """
    try:
        shape = _read_shape(config)
        graph = _Graph(_read_safetensors(weights))
        graph.bert(shape)
    except (KeyError, ValueError) as error:
        message = f"{weights.parent} holds no BERT model that can be written to ONNX ({error}). Pull the model again."
        raise AssetsMissing(message) from error
    target.write_bytes(graph.serialise(shape.width))


def _read_shape(config: Path) -> _Shape:
    values = cast("dict[str, Any]", json.loads(config.read_text(encoding="utf-8")))
    if values["model_type"] != "bert" or values["hidden_act"] != "gelu":
        message = f"model_type {values['model_type']}, hidden_act {values['hidden_act']}"
        raise ValueError(message)
    return _Shape(
        width=int(values["hidden_size"]),
        heads=int(values["num_attention_heads"]),
        layers=int(values["num_hidden_layers"]),
        epsilon=float(values["layer_norm_eps"]),
    )


def _read_safetensors(path: Path) -> dict[str, Array]:
    """All tensors by name: u64 length of the header, JSON header, raw little-endian data."""
    raw = np.fromfile(path, dtype=np.uint8)
    head_end = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    head = cast("dict[str, dict[str, Any]]", json.loads(raw[8:head_end].tobytes()))
    tensors: dict[str, Array] = {}
    for name, entry in head.items():
        if name == "__metadata__":
            continue
        begin, end = cast("tuple[int, int]", entry["data_offsets"])
        data = raw[head_end + begin : head_end + end].view(_DTYPES[entry["dtype"]])
        tensors[name] = data.reshape(cast("list[int]", entry["shape"]))
    return tensors


class _Graph:
    """Collects the nodes and constants of one ONNX graph; methods return the name of their output."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        # onnx takes 0.2 s to import and is needed once in the life of an installation
        from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

        self._helper = cast("Any", helper)
        self._from_array = cast("Any", numpy_helper.from_array)
        self._int64, self._float32 = TensorProto.INT64, TensorProto.FLOAT
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def bert(self, shape: _Shape) -> None:
        """The whole encoder, from ``input_ids`` to ``last_hidden_state``."""
        hidden = self._embeddings(shape)
        mask = self._mask()
        self._constant("attention_scale", np.array(1 / math.sqrt(shape.head_width), np.float32))
        self._constant("split_heads", np.array([0, 0, shape.heads, shape.head_width], np.int64))
        self._constant("join_heads", np.array([0, 0, shape.width], np.int64))
        for layer in range(shape.layers):
            prefix = f"encoder.layer.{layer}."
            attended = self._attention(hidden, prefix, mask)
            summed = self._node("Add", [attended, hidden], prefix + "attention.residual")
            hidden = self._layer_norm(summed, prefix + "attention.output.LayerNorm", shape)
            wide = self._node("Gelu", [self._linear(hidden, prefix + "intermediate.dense")], prefix + "gelu")
            summed = self._node("Add", [self._linear(wide, prefix + "output.dense"), hidden], prefix + "residual")
            hidden = self._layer_norm(summed, prefix + "output.LayerNorm", shape)
        self._node("Identity", [hidden], "last_hidden_state")

    def serialise(self, width: int) -> bytes:
        """The model as the bytes of an ONNX file."""
        helper = self._helper
        inputs = [
            helper.make_tensor_value_info(name, self._int64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        output = helper.make_tensor_value_info("last_hidden_state", self._float32, ["batch", "tokens", width])
        graph = helper.make_graph(self._nodes, "bert", inputs, [output], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        return cast("bytes", model.SerializeToString(deterministic=True))

    def _embeddings(self, shape: _Shape) -> str:
        tables = {
            kind: self._constant(f"embeddings.{kind}", self._weights[f"embeddings.{kind}_embeddings.weight"])
            for kind in ("word", "token_type", "position")
        }
        words = self._node("Gather", [tables["word"], "input_ids"], "words")
        types = self._node("Gather", [tables["token_type"], "token_type_ids"], "types")
        length = self._node("Shape", ["input_ids"], "length", start=1, end=2)
        zero = self._constant("zero", np.array([0], np.int64))
        # Slice, not Gather(Range): ONNX Runtime 1.31 rewrites the latter into an invalid Slice
        positions = self._node("Slice", [tables["position"], zero, length, zero], "positions")
        summed = self._node("Add", [words, types], "words_types")
        summed = self._node("Add", [summed, positions], "words_types_positions")
        return self._layer_norm(summed, "embeddings.LayerNorm", shape)

    def _mask(self) -> str:
        """[B, 1, 1, T]: 0 where there is a token, -10000 where there is padding."""
        present = self._node("Cast", ["attention_mask"], "mask_float", to=self._float32)
        axes = self._constant("axes_1_2", np.array([1, 2], np.int64))
        present = self._node("Unsqueeze", [present, axes], "mask_4d")
        absent = self._node("Sub", [self._constant("one", np.array(1, np.float32)), present], "mask_padding")
        return self._node("Mul", [absent, self._constant("minus", np.array(-10000, np.float32))], "mask")

    def _attention(self, hidden: str, prefix: str, mask: str) -> str:
        heads: dict[str, str] = {}
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            name = f"{prefix}attention.self.{part}"
            split = self._node("Reshape", [self._linear(hidden, name), "split_heads"], name + ".split")
            heads[part] = self._node("Transpose", [split], name + ".heads", perm=order)
        name = prefix + "attention.self."
        scores = self._node("MatMul", [heads["query"], heads["key"]], name + "scores")
        scores = self._node("Mul", [scores, "attention_scale"], name + "scaled")
        scores = self._node("Add", [scores, mask], name + "masked")
        shares = self._node("Softmax", [scores], name + "shares", axis=-1)
        mixed = self._node("MatMul", [shares, heads["value"]], name + "mixed")
        mixed = self._node("Transpose", [mixed], name + "mixed_heads", perm=[0, 2, 1, 3])
        joined = self._node("Reshape", [mixed, "join_heads"], name + "joined")
        return self._linear(joined, prefix + "attention.output.dense")

    def _linear(self, hidden: str, name: str) -> str:
        weight = self._constant(name + ".weight", self._weights[name + ".weight"].T)
        bias = self._constant(name + ".bias", self._weights[name + ".bias"])
        return self._node("Add", [self._node("MatMul", [hidden, weight], name + ".product"), bias], name)

    def _layer_norm(self, hidden: str, name: str, shape: _Shape) -> str:
        scale = self._constant(name + ".weight", self._weights[name + ".weight"])
        bias = self._constant(name + ".bias", self._weights[name + ".bias"])
        return self._node("LayerNormalization", [hidden, scale, bias], name, axis=-1, epsilon=shape.epsilon)

    def _constant(self, name: str, value: Array) -> str:
        dtype = np.int64 if value.dtype == np.int64 else np.float32
        self._constants[name] = self._from_array(np.ascontiguousarray(value, dtype=dtype), name)
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self._nodes.append(self._helper.make_node(operator, list(inputs), [output], **attributes))
        return output
