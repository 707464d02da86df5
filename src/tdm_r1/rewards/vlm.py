"""Judges that run elsewhere, behind an OpenAI-compatible endpoint: `vlm`, `unifiedreward`, `deqa` and `hpsv3`.

Pictures are sent as PNG: JPEG changes what is judged. An answer without a number is an error of its row, never a 0.
`TDM_R1_SCORE_CACHE` keeps answers, so that a stage that is started again asks only for what is missing.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Final

import numpy as np
from PIL import Image as Pillow
from pydantic import Field, JsonValue, field_validator

from tdm_r1.addresses import require_no_credentials
from tdm_r1.config import Count, NonNegative, Positive, Rate, Section
from tdm_r1.rewards import endpoint
from tdm_r1.rewards.endpoint import Endpoint, EndpointError
from tdm_r1.rewards.protocol import BaseScorer, Image, Metadata, Score, ScorerInfo, failed, reason_of

LEVELS: Final[Mapping[str, float]] = MappingProxyType({"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1})
JUDGE: Final = (
    "Judge a picture that was generated from this caption: [{prompt}]. Consider whether everything that the caption "
    "asks for is shown, and how well the picture is made. Explain in one sentence, then end with `Final Score: ` and "
    "a number from 1 (poor) to 5 (excellent)."
)
UNIFIED: Final = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the "
    "caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nBased on the above criteria, assign a score from 1 "
    "to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [{prompt}]"
)
"""The words that UnifiedReward is asked with (arXiv 2503.05236) by Flow-GRPO; other words give other scores."""
NUMBER: Final = r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
"""A small μ is written as 5.3e-05, which is not 5.3."""


class VlmOptions(Section):
    url: str = ""
    """Base of the endpoint, e.g. `http://judge:8000/v1`."""
    model: str = ""
    """Model that it is asked for."""
    key_variable: str = "TDM_R1_JUDGE_KEY"
    """Environment variable that holds the key, if the endpoint wants one."""
    template: str = JUDGE
    """What is asked; `{prompt}` is replaced by the prompt."""
    pattern: str = rf"Final Score:\s*{NUMBER}"
    """Regular expression; the first group of its last match is the value."""
    low: float | None = 1.0
    """Smallest number that is an answer; none is unbounded."""
    high: float | None = 5.0
    """Largest number that is an answer; none is unbounded."""
    levels: dict[str, NonNegative] = Field(default={})
    """Words and their values; then the value is their mean by the probabilities of the answer's token."""
    answer_start: str = ""
    """Begins the model's answer for it; the server must know `continue_final_message`, as vLLM does."""
    side: Count = 0
    """Pixels of the square that a picture is resized to; 0 sends it as it is."""
    max_tokens: Positive = 512
    """Of an answer."""
    body: dict[str, JsonValue] = Field(default={})
    """Further fields of each request."""
    concurrency: Positive = 8
    """Requests at a time, of each scoring process."""
    timeout: Rate = 60.0
    """Seconds for one attempt."""
    retries: Count = 3
    """Further attempts after a failure that may pass."""

    @field_validator("url", "body")
    @classmethod
    def _no_credentials(cls, value: Any) -> Any:
        require_no_credentials(value, "the options of a scorer")
        return value

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"the pattern is no regular expression: {error}") from error
        if groups < 1:
            raise ValueError("the pattern has no group for the number")
        return pattern


class VlmJudge(BaseScorer):
    """A vision-language model that is asked in words and answers with a number."""

    about = ScorerInfo(
        name="vlm",
        version="1",
        licence="Apache-2.0 (code), the model's own",
        needs=("image", "prompt"),
        deterministic=False,
        device="remote",
        extra="preference",
        weights="a server of any vision-language model (`url`, `model`)",
    )
    Options = VlmOptions
    code: ClassVar[tuple[ModuleType, ...]] = (endpoint,)
    options: VlmOptions

    def describe(self) -> ScorerInfo:
        shown = self.options
        longest = (shown.timeout + endpoint.LONGEST_WAIT) * (shown.retries + 1)
        low, high = (edge if edge is not None else bound for edge, bound in _edges(shown))
        return replace(self.about, batch=shown.concurrency, cpu_seconds=longest / 5, low=low, high=high)

    def load(self, threads: int) -> None:
        del threads
        shown = self.options
        if not shown.url.startswith(("http://", "https://")):
            raise ValueError(f"the option `url` is {shown.url!r}, expected the http(s) address of an endpoint")
        self._endpoint = Endpoint(
            shown.url,
            key_variable=shown.key_variable,
            timeout=shown.timeout,
            retries=shown.retries,
            connections=shown.concurrency,
        )

    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        del metadata
        with ThreadPoolExecutor(self.options.concurrency) as threads:
            return list(threads.map(self._judge, images, prompts))

    def _judge(self, image: Image, prompt: str) -> Score:
        try:
            choice = self._endpoint.ask(self.request(image, prompt))
            value = _expected(choice, self.options.levels) if self.options.levels else _number(choice, self.options)
            return Score(value, detail=json.dumps({"answer": choice["message"]["content"]}, ensure_ascii=False))
        except EndpointError as error:
            return failed(str(error))
        except Exception as error:
            return failed(reason_of(error))

    def request(self, image: Image, prompt: str) -> dict[str, Any]:
        """The body of one request."""
        shown = self.options
        picture = {"type": "image_url", "image_url": {"url": data_url(image, shown.side)}}
        words = {"type": "text", "text": shown.template.replace("{prompt}", prompt)}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, words]}]
        asked: dict[str, Any] = {"model": shown.model, "temperature": 0, "seed": 0, "max_tokens": shown.max_tokens}
        if shown.answer_start:
            messages.append({"role": "assistant", "content": shown.answer_start})
            asked |= {"continue_final_message": True, "add_generation_prompt": False}
        if shown.levels:
            asked |= {"logprobs": True, "top_logprobs": 20}
        return {**asked, "messages": messages, **shown.body}

    def selftest(self) -> None:
        grey = np.full((64, 64, 3), 127, np.uint8)
        (score,) = self.score([grey], ["a plain grey picture"], [{}])
        if score.error is not None:
            raise ValueError(f"asked about a grey picture: {score.error}")


class UnifiedRewardOptions(VlmOptions):
    template: str = UNIFIED
    """What is asked; `{prompt}` is replaced by the prompt."""
    side: Count = 512
    """Pixels of the square that a picture is resized to; 0 sends it as it is."""


class UnifiedReward(VlmJudge):
    """UnifiedReward behind an endpoint, 1 to 5 for alignment and quality together; peers divide by 5."""

    about = replace(
        VlmJudge.about,
        name="unifiedreward",
        weights="a server of CodeGoat24/UnifiedReward-7b-v1.5 or its successors (`url`, `model`)",
    )
    Options = UnifiedRewardOptions


class DeqaOptions(VlmOptions):
    template: str = "How would you rate the quality of this image?"
    """What is asked."""
    levels: dict[str, NonNegative] = Field(default=dict(LEVELS))
    """Words and their values; the value is their mean by the probabilities of the answer's token."""
    answer_start: str = "The quality of the image is"
    """Begins the model's answer for it; the server must know `continue_final_message`, as vLLM does."""
    max_tokens: Positive = 4
    """Of an answer."""


class Deqa(VlmJudge):
    """DeQA-Score behind an endpoint, quality of the picture alone, 1 to 5 by the probabilities of five words."""

    about = replace(
        VlmJudge.about,
        name="deqa",
        needs=("image",),
        weights="a server of zhiyuanyou/DeQA-Score-Mix3 with log-probabilities (`url`, `model`)",
    )
    Options = DeqaOptions


class HpsV3Options(VlmOptions):
    template: str = "{prompt}"
    """What is sent beside the picture."""
    pattern: str = rf"^\s*{NUMBER}"
    """Regular expression; the first group of its last match is the value."""
    low: float | None = None
    """Smallest number that is an answer; none is unbounded."""
    high: float | None = None
    """Largest number that is an answer; none is unbounded."""


class HpsV3(VlmJudge):
    """HPSv3 behind an endpoint whose message is μ, a number without bounds (arXiv 2508.03789)."""

    about = replace(
        VlmJudge.about, name="hpsv3", weights="a server of MizzenAI/HPSv3 that answers with μ (`url`, `model`)"
    )
    Options = HpsV3Options


def data_url(image: Image, side: int = 0) -> str:
    """A picture as PNG in a URL, resized to a square when a side is given."""
    picture = Pillow.fromarray(image)
    if side:
        picture = picture.resize((side, side), Pillow.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _edges(shown: VlmOptions) -> tuple[tuple[float | None, float], ...]:
    if shown.levels:
        return (min(shown.levels.values()), 0.0), (max(shown.levels.values()), 0.0)
    return (shown.low, -math.inf), (shown.high, math.inf)


def _number(choice: Mapping[str, Any], shown: VlmOptions) -> float:
    content = choice["message"]["content"]
    found = list(re.finditer(shown.pattern, content))
    if not found:
        raise EndpointError(f"the answer has no number where `{shown.pattern}` looks for it: {content[:200]!r}")
    value = float(found[-1][1])
    low, high = (edge if edge is not None else bound for edge, bound in _edges(shown))
    if not low <= value <= high:
        raise EndpointError(f"the answer is {value:g}, expected {low:g} to {high:g}: {content[:200]!r}")
    return value


def _expected(choice: Mapping[str, Any], levels: Mapping[str, float]) -> float:
    """Mean of the levels by the probabilities of the first token that names one."""
    for token in (choice.get("logprobs") or {}).get("content") or []:
        if str(token.get("token", "")).strip().lower() not in levels:
            continue
        odds: dict[str, float] = {}
        for one in token["top_logprobs"]:
            if (word := one["token"].strip().lower()) in levels:
                odds[word] = odds.get(word, 0.0) + math.exp(one["logprob"])
        if odds and (total := math.fsum(odds.values())) > 0:
            return math.fsum(levels[word] * odd for word, odd in odds.items()) / total
    raise EndpointError(f"no token with its probabilities is one of {', '.join(levels)}: {str(choice)[:200]}")
