"""Engines that read text from pictures, behind one interface, with settings for one thread and small pictures.

RapidOCR's defaults take every core and enlarge each picture to 736 pixels before they look for text, which is most of
their cost: `side_of` looks at fewer pixels. Recognition always sees the pixels of the picture itself.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tdm_r1.rewards.extras import need
from tdm_r1.rewards.ocr_text import Line
from tdm_r1.rewards.protocol import Image

SIDES: Final = (160, 480)
"""Pixels: least and most of the shorter side in which text is looked for."""
MODELS: Final = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")
"""Of RapidOCR's wheel."""

READ_SIDE: Final = 48
"""Pixels that a recogniser makes of a line's height, and at least of its width: by default 320, mostly padding."""

Limit = tuple[Literal["min", "max"], int]


class Engine(Protocol):
    """Finds and recognises text; the scorer orders and filters what it finds."""

    libraries: Sequence[str]
    """Distributions that can change what it finds."""

    def files(self) -> Sequence[Path]:
        """Weights on disk; part of the scorer's revision."""

    def load(self, threads: int) -> None:
        """Read weights; raise when something is not installed."""

    def lines(self, image: Image, side: int) -> list[Line]:
        """Every line, in any order and of any confidence.

        Args:
            side: pixels of the shorter side in which text is looked for.
        """


def side_of(image: Image) -> int:
    """Half of the picture's shorter side, within `SIDES`."""
    least, most = SIDES
    half: int = min(image.shape[:2]) // 2
    return max(least, min(most, half))


def limit_of(image: Image, side: int) -> Limit:
    """`side` for the shorter side, in the words of PaddleOCR: a least shorter, or a greatest longer side."""
    short, long = sorted(image.shape[:2])
    return ("min", side) if short < side else ("max", round(side * long / short))


def line_of(text: str, confidence: float, corners: npt.NDArray[Any]) -> Line:
    """A line from its four corners [4, 2], x before y."""
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return Line(text, float(confidence), left, top, right, bottom)


class RapidWeights:
    """PP-OCRv6 small, whose weights lie in the wheel of `rapidocr`; by ONNX Runtime."""

    libraries: Sequence[str] = ("rapidocr", "onnxruntime")

    def __init__(self) -> None:
        self._engine: Any = None

    def files(self) -> Sequence[Path]:
        found = find_spec("rapidocr")
        folder = Path(found.origin).parent / "models" if found and found.origin else None
        return [folder / name for name in MODELS if (folder / name).is_file()] if folder else []

    def open(self, threads: int, **params: object) -> None:
        """Read the weights; `params` are RapidOCR's own."""
        rapidocr = need("rapidocr", extra="ocr")
        need("onnxruntime", extra="ocr")
        if len(self.files()) != len(MODELS):
            raise FileNotFoundError(f"`rapidocr` holds no {' and '.join(MODELS)}; the extra `ocr` names its version")
        common = {
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Global.log_level": "error",
            "Global.text_score": 0.0,
            "Global.use_cls": False,
        }
        self._engine = rapidocr.RapidOCR(params={**common, **params})


class RapidEngine(RapidWeights):
    """Finds lines, then reads them."""

    def load(self, threads: int) -> None:
        self.open(threads)
        self._engine(np.zeros((32, 32, 3), np.uint8))  # it opens the detector at its first picture

    def lines(self, image: Image, side: int) -> list[Line]:
        detector = self._engine.text_det  # reads both at every picture
        detector.limit_type, detector.limit_side_len = limit_of(image, side)
        found = self._engine(np.ascontiguousarray(image[..., ::-1]))
        if found.txts is None:
            return []
        return [line_of(*each) for each in zip(found.txts, found.scores, found.boxes, strict=True)]


class RapidReader(RapidWeights):
    """Reads a picture that is one line of text, without looking for lines: a tenth of the work."""

    def load(self, threads: int) -> None:
        self.open(threads, **{"Rec.rec_img_shape": [3, READ_SIDE, READ_SIDE]})

    def text(self, image: Image) -> tuple[str, float]:
        """What the whole picture says, and how sure the engine is."""
        found = self._engine(np.ascontiguousarray(image[..., ::-1]), use_det=False, use_cls=False, use_rec=True)
        return ("", 0.0) if not found.txts else (found.txts[0], float(found.scores[0]))


class PaddleEngine:
    """PaddleOCR 3 with models in local folders, each an `inference.yml` beside its weights.

    Args:
        detection: folder of the model that finds lines.
        recognition: folder of the model that reads them.
        runtime: `onnxruntime` for weights in `inference.onnx`, `paddle` for Paddle's own.
    """

    def __init__(self, detection: Path, recognition: Path, runtime: Literal["onnxruntime", "paddle"]) -> None:
        self._folders = (detection, recognition)
        self._runtime = runtime
        self._engine: Any = None
        self.libraries: Sequence[str] = (
            "paddleocr",
            "paddlex",
            "paddlepaddle" if runtime == "paddle" else "onnxruntime",
        )

    def files(self) -> Sequence[Path]:
        return sorted(path for folder in self._folders for path in folder.glob("inference.*"))

    def load(self, threads: int) -> None:
        for folder, option in zip(self._folders, ("detection", "recognition"), strict=True):
            if not (folder / "inference.yml").is_file():
                raise FileNotFoundError(f"`{folder}` holds no inference.yml; the option `{option}` names its folder")
        os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
        paddleocr = need("paddleocr", extra="paddleocr")
        detection, recognition = self._folders
        own = {"enable_mkldnn": False, "cpu_threads": threads}  # oneDNN stops with an error on PP-OCRv4
        self._engine = paddleocr.PaddleOCR(
            device="cpu",
            engine=self._runtime,
            text_detection_model_name=_name(detection),
            text_detection_model_dir=str(detection),
            text_recognition_model_name=_name(recognition),
            text_recognition_model_dir=str(recognition),
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            text_rec_score_thresh=0.0,
            **(own if self._runtime == "paddle" else {"cpu_threads": threads}),
        )

    def lines(self, image: Image, side: int) -> list[Line]:
        kind, length = limit_of(image, side)
        (found,) = self._engine.predict(
            np.ascontiguousarray(image[..., ::-1]), text_det_limit_type=kind, text_det_limit_side_len=length
        )
        each = zip(found["rec_texts"], found["rec_scores"], found["rec_polys"], strict=True)
        return [line_of(text, confidence, np.asarray(corners)) for text, confidence, corners in each]


def _name(folder: Path) -> str:
    """What a model calls itself: PaddleOCR refuses a folder of another name."""
    file = folder / "inference.yml"
    content = need("yaml", extra="ocr").safe_load(file.read_text(encoding="utf-8"))
    try:
        return str(content["Global"]["model_name"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"`{file}` names no Global.model_name") from error


class TesseractEngine:
    """The program `tesseract`, once per picture: weaker on small and noisy text, and of another kind."""

    libraries: Sequence[str] = ()

    @cached_property
    def _program(self) -> str:
        found = shutil.which("tesseract")
        if found is None:
            raise FileNotFoundError("the program `tesseract` is not installed: apt-get install tesseract-ocr")
        return found

    def _run(self, *words: str, given: bytes = b"") -> str:
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        ended = subprocess.run(
            [self._program, *words], input=given, capture_output=True, env=environment, check=False, timeout=60
        )
        if ended.returncode:
            raise RuntimeError(f"tesseract exited with {ended.returncode}: {ended.stderr.decode(errors='replace')}")
        return ended.stdout.decode()

    def files(self) -> Sequence[Path]:
        if shutil.which("tesseract") is None:
            return []
        folder = re.search(r'"(.+)"', self._run("--list-langs"))
        return [Path(self._program), *(Path(folder[1]).glob("eng.traineddata") if folder else [])]

    def load(self, threads: int) -> None:
        del threads
        if "eng" not in self._run("--list-langs").split():
            raise FileNotFoundError("tesseract has no English: apt-get install tesseract-ocr-eng")

    def lines(self, image: Image, side: int) -> list[Line]:
        from PIL import Image as Pillow

        del side
        picture = io.BytesIO()
        Pillow.fromarray(image).save(picture, format="PNG", compress_level=1)
        text = self._run("stdin", "stdout", "--psm", "6", "tsv", given=picture.getvalue())
        return _from_tsv(text)


def _from_tsv(text: str) -> list[Line]:
    """Tesseract's words, joined to its lines."""
    words: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if float(row["conf"]) >= 0 and row["text"].strip():
            key = tuple(row[name] for name in ("page_num", "block_num", "par_num", "line_num"))
            words.setdefault(key, []).append(row)
    found = []
    for line in words.values():
        boxes = np.array([[float(word[name]) for name in ("left", "top", "width", "height")] for word in line])
        boxes[:, 2:] += boxes[:, :2]
        confidence = float(np.mean([float(word["conf"]) for word in line])) / 100
        found.append(line_of(" ".join(word["text"] for word in line), confidence, boxes.reshape(-1, 2)))
    return found
