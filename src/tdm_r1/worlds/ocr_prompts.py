"""Prompts that ask for written text: 1,018 to measure on, and others to train on, none of whose texts is measured.

Flow-GRPO's OCR prompts were written by a language model and are not shipped; these are drawn from lists of words, as
many for the test (1,018), in the same form: one sentence about a scene with the text in straight quotation marks.
So a score here is not comparable with one on theirs. Texts come in four tags: `word`, `words`, `number`, `line`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, Final

from tdm_r1.worlds.world import WorldPrompt

Row = dict[str, Any]

SEED: Final = 20260307
TEST: Final[Mapping[str, int]] = MappingProxyType({"word": 118, "words": 300, "number": 300, "line": 300})
"""Rows by tag; 1,018 together, as many as Flow-GRPO's test has."""
TRAINING_PROMPTS: Final = 1_700
"""Of the world; each costs a row of text embeddings, which is 5 MB for Stable Diffusion 3.5."""
_MISSES: Final = 3000


def _split(text: str, by: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(by))


SCENES: Final = tuple(
    line.strip()
    for line in """
    a wooden sign at the start of a forest trail that says "{text}"
    a neon sign above a diner at night that reads "{text}"
    a chalkboard in front of a small cafe with the text "{text}"
    a vintage travel poster with the title "{text}"
    the cover of a paperback novel with the title "{text}"
    a white coffee mug printed with "{text}"
    a grey hoodie on a hanger with "{text}" across the chest
    a birthday cake with "{text}" written in icing
    a brick wall with the graffiti "{text}" in bold colors
    a street sign on a rainy corner that reads "{text}"
    a delivery van with "{text}" painted on its side
    a theater marquee at dusk announcing "{text}"
    a glass shop door with "{text}" in gold letters
    a magazine cover with the headline "{text}"
    a stack of newspapers with the headline "{text}"
    a cardboard box stamped with "{text}"
    a robot holding a paper sign that says "{text}"
    a cat sitting beside a handwritten note that reads "{text}"
    a hot air balloon with "{text}" on its envelope
    a banner across a village street that says "{text}"
    a movie poster of a lighthouse with the title "{text}"
    a train station display board showing "{text}"
    a metal plaque on an old stone building engraved with "{text}"
    a bottle of juice with a label that reads "{text}"
    a sandy beach with "{text}" drawn in the sand
    a whiteboard in an empty classroom with "{text}" written on it
    a laptop screen in a dark room displaying "{text}"
    a greeting card on a table with "{text}" in cursive letters
    a snowy mountain lodge with a sign that says "{text}"
    a race car with "{text}" on its hood
    an airport gate with a screen that shows "{text}"
    a canvas tote bag with the print "{text}"
    a museum entrance with a large banner reading "{text}"
    a sailing boat with "{text}" painted on its stern
    a market stall with a price card that says "{text}"
    a football scarf held up with the words "{text}"
    an astronaut holding a flag that says "{text}"
    a road sign in the desert that reads "{text}"
    a bakery window with "{text}" written in white paint
    a subway wall tiled with the letters "{text}"
    a candle jar with a minimalist label that says "{text}"
    a school bus with "{text}" along its side
    a puppy wearing a bandana that says "{text}"
    a tattoo on a forearm that reads "{text}"
    a leather notebook embossed with "{text}"
    a skateboard deck with the lettering "{text}"
    a cloudy sky with "{text}" written by a plane
    a pizza box with "{text}" on its lid
    a park bench with a small plate that says "{text}"
    a digital billboard in a busy city showing "{text}"
    """.strip().splitlines()
)

WORDS: Final = _split(
    """
    Bakery Library Museum Harvest Horizon Velocity Adventure Journey Paradise Midnight Sunrise Thunder Whisper Galaxy
    Compass Voyage Orchard Lantern Meadow Cascade Blossom Canyon Glacier Harbor Island Jungle Kingdom Lagoon Mosaic
    Nectar Oasis Pepper Quartz Ranger Saffron Tempest Umbrella Valley Willow Zephyr Academy Balance Bravery Breeze
    Candle Carnival Castle Century Champion Chapter Charity Chemist Cinema Circus Citrus Classic Comfort Concert
    Courage Crystal Culture Curious Dazzle Delight Destiny Diamond Discover Dragon Dream Dynamic Eclipse Electric
    Element Emerald Energy Enigma Escape Evening Explore Fantasy Festival Fiction Finale Fitness Florist Forever
    Fortune Freedom Friends Frontier Future Garden Genesis Genius Giant Glory Golden Grace Gravity Guardian Happy
    Harmony Haven Heritage Hero History Holiday Honest Honey Hotel Imagine Impact Infinity Inspire Invent Ivory Jasmine
    Jubilee Justice Karma Laughter Legacy Legend Liberty Lucky Lumen Machine Magic Magnet Marble Market Marvel Master
    Matrix Melody Memory Metro Mirage Miracle Modern Moment Monster Morning Motion Mystery Mythic Nature Network Nimbus
    Nomad Nostalgia November Ocean October Olympus Opera Optimist Orbit Origin Passion Patience Pharmacy Phoenix Pilot
    Pioneer Planet Poetry Polaris Popcorn Promise Puzzle Pyramid Quantum Quiet Rainbow Rebel Recycle Refresh Remember
    Respect Rhythm River Rocket Romance Royal Safari Sanctuary Science Season Secret Serenity Shadow Shelter Signal
    Silence Silver Simple Solar Spark Spectrum Spirit Splendor Spring Starlight Station Storm Studio Summer Summit
    Sunday Sunset Symphony Talent Teacher Theater Tiger Together Tomorrow Treasure Tribute Triumph Twilight Unity
    Universe Utopia Vacation Vanilla Velvet Venture Victory Village Vintage Vision Volcano Wander Welcome Wildlife
    Winner Winter Wisdom Wonder Yesterday Yoga Zenith
    """
)
FIRST: Final = _split(
    """
    Fresh Happy Wild Silent Golden Hidden Lost Bright Frozen Ancient Secret Brave Lucky Broken Endless Gentle Hungry
    Little Magic Modern Northern Open Purple Quiet Rapid Royal Rusty Sacred Silver Sleepy Solar Sunny Sweet Tiny Urban
    Velvet Vivid Warm Western Young
    """
)
SECOND: Final = _split(
    """
    Bread Birthday River Garden Coffee Forest Planet Future Market Bicycle Mountain Dragon Ocean Kitchen Music Summer
    Tiger Valley Window Rocket Castle Flower Harbor Island Journey Letter Morning Orchard Pencil Pirate Rabbit Robot
    Sailor School Shadow Spirit Storm Temple Thunder Weekend
    """
)
MONTHS: Final = _split("January February March April May June July August September October November December")
PLACES: Final = _split("the Moon,Lake Town,Maple Street,our Farm,the Club,Green Hill,Sea View,the Show", ",")
ACTS: Final = _split("Close the,Lock the,Clean the,Paint the,Leave the,Check the,Watch the,Mind the", ",")
THINGS: Final = _split("Door,Gate,Window,Kitchen,Garden,Bridge,Engine,Stairs,Boat,Fence,Camera,Oven", ",")
ENDS: Final = _split("Before You Go,at All Times,Every Night,After Use,With Great Care,Until Further Notice", ",")


class _Draw:
    """Draws that Python promises to repeat: those of `random()` alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def number(self, low: int, high: int) -> int:
        """From `low` to `high`, both possible."""
        return low + int(self._random() * (high - low + 1))

    def of(self, choices: Sequence[str]) -> str:
        return choices[self.number(0, len(choices) - 1)]


def _word(draw: _Draw) -> str:
    return draw.of(WORDS)


def _words(draw: _Draw) -> str:
    text = f"{draw.of(FIRST)} {draw.of(SECOND)}"
    return text.upper() if draw.number(0, 3) == 0 else text


def _number(draw: _Draw) -> str:
    return draw.of(
        (
            f"Open Until {draw.number(6, 11)}:{draw.number(0, 5)}0 PM",
            f"Only ${draw.number(1, 99)}.{draw.number(10, 99)}",
            f"Sale {draw.number(1, 9)}{draw.number(0, 1) * 5}% Off",
            f"Room {draw.number(100, 999)}",
            f"Platform {draw.number(1, 24)}",
            f"{draw.of(MONTHS)} {draw.number(1, 28)}",
            f"Est. {draw.number(1850, 2025)}",
            f"Route {draw.number(2, 199)}",
            f"Exit {draw.number(1, 98)}B",
            f"{draw.number(2, 60)} km to {draw.of(SECOND)}",
        )
    )


def _line(draw: _Draw) -> str:
    return draw.of(
        (
            f"Please {draw.of(ACTS)} {draw.of(THINGS)} {draw.of(ENDS)}",
            f"Welcome to {draw.of(PLACES)} {draw.of(MONTHS)} {draw.number(1, 28)}",
            f"No {draw.of(SECOND)} Beyond This Point",
            f"The {draw.of(FIRST)} {draw.of(SECOND)} of {draw.of(WORDS)}",
            f"Keep {draw.of(SECOND)} and {draw.of(SECOND)} {draw.of(FIRST)}",
            f"{draw.of(FIRST)} {draw.of(SECOND)} Since {draw.number(1900, 2025)}",
        )
    )


_TEXT: Final[Mapping[str, Callable[[_Draw], str]]] = MappingProxyType(
    {"word": _word, "words": _words, "number": _number, "line": _line}
)


def _row(tag: str, text: str, draw: _Draw) -> Row:
    return {"tag": tag, "text": text, "prompt": draw.of(SCENES).format(text=text)}


def benchmark_rows() -> list[Row]:
    """The 1,018 rows to measure on: tag, text and prompt; no text twice."""
    draw = _Draw(SEED)
    taken: set[str] = set()
    return [row for tag, count in TEST.items() for row in _fresh(tag, count, draw, taken, by="text")]


def training_rows(count: int, seed: int = SEED + 1) -> list[Row]:
    """Rows in the proportions of the test, none of whose texts is in it; no prompt twice.

    Args:
        count: rows; fewer come when a tag has no more to give.
    """
    draw = _Draw(seed)
    taken: set[str] = set()
    held_out = {row["text"].lower() for row in benchmark_rows()}
    ends = [round(count * end / sum(TEST.values())) for end in accumulate(TEST.values(), initial=0)]
    return [
        row
        for tag, (start, end) in zip(TEST, pairwise(ends), strict=True)
        for row in _fresh(tag, end - start, draw, taken, by="prompt", without=held_out)
    ]


def _fresh(
    tag: str, count: int, draw: _Draw, taken: set[str], *, by: str, without: set[str] | frozenset[str] = frozenset()
) -> Iterator[Row]:
    """Rows of a tag of which `by` was not taken yet; ends when none has come for long."""
    misses = 0
    while count and misses < _MISSES:
        row = _row(tag, _TEXT[tag](draw), draw)
        if row["text"].lower() in without or row[by].lower() in taken:
            misses += 1
            continue
        taken.add(row[by].lower())
        misses, count = 0, count - 1
        yield row


@dataclass(frozen=True)
class OcrWorld:
    """Texts to write: training prompts, and 1,018 to measure on."""

    def prompts(self) -> list[WorldPrompt]:
        found = []
        for split, rows in (("train", training_rows(TRAINING_PROMPTS)), ("test", benchmark_rows())):
            numbers = dict.fromkeys(TEST, 0)
            for row in rows:
                tag, number = row["tag"], numbers[row["tag"]]
                numbers[tag] += 1
                found.append(
                    WorldPrompt(f"{split}-{tag}-{number:04d}", row["prompt"], tag, split, {"text": row["text"]})
                )
        return found
