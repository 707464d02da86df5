"""PaddleOCR reads for the scorer `ocr`, in a process of its own: its OpenCV is not that of this environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PADDLE = ROOT / "build" / "paddleocr"
DETECTION = """
Global: {model_name: PP-OCRv6_small_det}
PreProcess:
  transform_ops:
  - DecodeImage: {channel_first: false, img_mode: BGR}
  - DetResizeForTest: null
  - NormalizeImage: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], order: hwc, scale: 1./255.}
  - ToCHWImage: null
  - KeepKeys: {keep_keys: [image, shape]}
PostProcess: {name: DBPostProcess, thresh: 0.3, box_thresh: 0.6, max_candidates: 1000, unclip_ratio: 1.5}
"""
RECOGNITION = """
Global:
  model_name: PP-OCRv6_small_rec
PreProcess:
  transform_ops:
  - DecodeImage: {channel_first: false, img_mode: BGR}
  - RecResizeImg: {image_shape: [3, 48, 320]}
  - KeepKeys: {keep_keys: [image, label]}
PostProcess:
  name: CTCLabelDecode
  character_dict:
"""
READ = """
import json, sys
from benchmarks.lettering import lettering
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.registry import open_scorer

scorer = open_scorer("ocr", {"engine": "paddleocr", "detection": sys.argv[1], "recognition": sys.argv[2]})
make_ready(scorer)
texts = ("Happy Birthday", "Room 214")
rows = [Question(lettering(text, 128, seed), f'"{text}"', {}) for seed, text in enumerate(texts)]
scores = ask(scorer, [*rows, Question(rows[0].picture, "no text", {}), Question(b"", '"x"', {})])
print(json.dumps([score.error or score.value for score in scores]))
"""


def models(target: Path) -> tuple[Path, Path]:
    """The weights of RapidOCR's wheel in two folders as PaddleOCR wants them."""
    import onnxruntime
    import rapidocr

    source = Path(rapidocr.__file__).parent / "models"
    characters = onnxruntime.InferenceSession(source / "PP-OCRv6_rec_small.onnx").get_modelmeta().custom_metadata_map
    alphabet = "".join(f"  - {json.dumps(one)}\n" for one in characters["character"].splitlines())
    for kind, text in (("det", DETECTION), ("rec", RECOGNITION + alphabet)):
        folder = target / kind
        folder.mkdir()
        shutil.copy(source / f"PP-OCRv6_{kind}_small.onnx", folder / "inference.onnx")
        (folder / "inference.yml").write_text(text.lstrip(), encoding="utf-8")
    return target / "det", target / "rec"


@pytest.mark.slow
def test_paddleocr_reads_with_models_in_local_folders(tmp_path: Path) -> None:
    if not PADDLE.is_dir():
        pytest.fail(f"{PADDLE} does not exist; `make ocr-engines` makes it")
    path = os.pathsep.join(map(str, (PADDLE, ROOT / "src", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ, *map(str, models(tmp_path))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])[:2] == [1.0, 1.0]
    unquoted, empty = json.loads(ended.stdout.splitlines()[-1])[2:]
    assert "no text in quotation marks" in unquoted
    assert "cannot be decoded" in empty
