"""The compiled pipeline as the driver sees it: is it a block, and which queues do its pods wait in?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tdm_r1.drive.sizes import Breach, breaches
from tdm_r1.errors import ConfigError

PARAMETERS: Final[Mapping[str, str]] = {"root": "STRING", "start": "NUMBER_INTEGER", "shards": "LIST"}
"""What the driver passes, with the types of KFP."""
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
LAUNCHED: Final = ["launch", "--nproc-per-node"]
"""How a container begins that starts a stage in several processes; the number follows."""


@dataclass(frozen=True)
class Package:
    """A compiled KFP pipeline, from a file or from the server."""

    pipeline: Mapping[str, Any]
    platform: Mapping[str, Any] | None = None
    takes: frozenset[str] = frozenset(PARAMETERS)
    """Which of the driver's parameters it has."""

    @property
    def body(self) -> Mapping[str, Any]:
        """As `pipeline_spec` of a run wants it."""
        return {"pipeline_spec": self.pipeline, "platform_spec": self.platform} if self.platform else self.pipeline

    @property
    def processes(self) -> Mapping[str, int]:
        """In how many processes a stage of it is started, by stage; those in one are left out."""
        return processes_in(self.pipeline)

    @property
    def queues(self) -> tuple[str, ...]:
        """Kueue queues that its pods name, sorted."""
        return tuple(sorted(set(queues_in(self.platform or {}))))

    def breaches(self, shards: int) -> Iterator[Breach]:
        """Limits that a run with so many shards would break; none for a pipeline that cannot be measured."""
        documents = [self.pipeline, *([self.platform] if self.platform else [])]
        try:
            yield from breaches(documents, {"shards": shards})
        except (KeyError, TypeError, AttributeError):
            return  # a pipeline of another shape, which KFP itself will judge


def read_package(path: Path) -> Package:
    """Read a compiled pipeline and refuse one that is no block.

    Raises:
        ConfigError: when there is no such file, or it is something else.
    """
    hint = "name a compiled pipeline such as pipelines/compiled/block.yaml, or --pipeline-name for one on the server"
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("`drive` needs PyYAML", hint="pip install 'tdm-r1[drive]'") from error
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"the pipeline `{path}` cannot be read: {error.strerror}", hint=hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not YAML: {str(error).splitlines()[0]}", hint=hint) from error
    maps = [document for document in documents if isinstance(document, dict)]
    if not 1 <= len(maps) <= 2 or len(maps) != len(documents) or "root" not in maps[0]:
        raise ConfigError(f"`{path}` is no compiled pipeline", hint=hint)
    taken = taken_parameters(maps[0], f"`{path}`")
    return Package(maps[0], maps[1] if len(maps) == 2 else None, taken)


def taken_parameters(pipeline: Mapping[str, Any], what: str) -> frozenset[str]:
    """Which of the driver's parameters a pipeline takes: `root`, and perhaps `start` and `shards`.

    One without `start` finds the next iterations by itself.

    Raises:
        ConfigError: when it has no `root`, has one of another type, or needs what the driver does not know.
    """
    given = pipeline.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    hint = "drive pipelines/compiled/block.yaml, or another pipeline with root, start and shards"
    for name, kind in PARAMETERS.items():
        found = given.get(name, {}).get("parameterType", kind if name != "root" else "missing")
        if found != kind:
            raise ConfigError(f"{what} is no block: its parameter `{name}` is {found}, expected {kind}", hint=hint)
    more = [n for n, s in given.items() if n not in PARAMETERS and "defaultValue" not in s and not s.get("isOptional")]
    if more:
        raise ConfigError(f"{what} needs {', '.join(more)} too, which the driver does not pass", hint=hint)
    return frozenset(given) & frozenset(PARAMETERS)


def processes_in(node: Any) -> dict[str, int]:
    """Processes by stage, of every container that starts `tdm-r1 launch`."""
    found: dict[str, int] = {}
    if isinstance(node, Mapping):
        words = node.get("args")
        if isinstance(words, list) and words[:2] == LAUNCHED and "stage" in words[3:-1]:
            return {str(words[words.index("stage") + 1]): int(words[2])}
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            found |= processes_in(value)
    return found


def queues_in(node: Any) -> Iterator[str]:
    """Every value of the Kueue label, wherever it stands."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == QUEUE_LABEL and isinstance(value, str):
                yield value
            else:
                yield from queues_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from queues_in(value)
