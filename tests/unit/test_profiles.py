"""Claims about profiles: complete, refused when wrong, and each key is documented and read by something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tdm_r1 import profiles
from tdm_r1.config import Section
from tdm_r1.errors import ConfigError
from tdm_r1.profiles import POOL_OF, PROFILES, Pool, Profile, open_profile
from tdm_r1.quantities import bytes_of, cores_of
from tdm_r1.runtime.layout import STAGES

ROOT = Path(__file__).parents[2]
SECTIONS = [
    found
    for found in vars(profiles).values()
    if isinstance(found, type) and issubclass(found, Section) and found.__module__ == profiles.__name__
]
KEYS = [(section, name) for section in SECTIONS for name in section.model_fields]


def _attributes_read() -> set[str]:
    """Every name that pipelines or the package read as an attribute."""
    files = [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "src").rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    loads = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in loads if isinstance(node.ctx, ast.Load)}


def test_every_key_of_a_profile_is_documented_and_read_by_something() -> None:
    read = _attributes_read()
    assert [f"{section.__name__}.{name}" for section, name in KEYS if name not in read] == []
    assert [f"{section.__name__}.{name}" for section, name in KEYS if not section.model_fields[name].description] == []


def test_every_stage_has_a_pool() -> None:
    assert set(POOL_OF) == set(STAGES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_valid_and_has_its_own_name(name: str) -> None:
    profile = open_profile(name)
    assert profile.name == name
    assert Profile.model_validate(profile.model_dump()) == profile
    assert profile.pools.scoring.accelerators == 0


def test_only_rollout_and_scoring_of_the_profile_spot_may_be_taken_back() -> None:
    profile = open_profile("spot")
    assert {stage for stage in STAGES if profile.pool_of(stage).spot} == {
        *("encode_prompts", "rollout", "reward_scoring", "evaluation")
    }


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(
        'extends = "8xH100"\nshards_at_once = 64\n[pools.scoring]\nprice_per_hour = 0.68\nnode_labels = {a = "b"}\n'
    )
    base, ours = open_profile("8xH100"), open_profile(str(path))
    scoring = base.pools.scoring.model_copy(update={"price_per_hour": 0.68, "node_labels": {"a": "b"}})
    pools = base.pools.model_copy(update={"scoring": scoring})
    assert ours == base.model_copy(update={"name": "ours", "shards_at_once": 64, "pools": pools})


def test_a_storage_without_a_secret_has_none(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('extends = "1xA100"\n[storage]\nregion = "eu-west-1"\n')
    assert open_profile("1xA100").storage.secret is not None
    assert open_profile(str(path)).storage.model_dump() == {"secret": None, "endpoint": None, "region": "eu-west-1"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("extends = 'h100'", "there is no profile `h100`"),
        ("shards_at_once = 0", "`shards_at_once` in `.*` is refused: .*greater than or equal to 1"),
        ("[pools.scoring]\ncpus = '4'", "`pools.scoring.cpus` in `.*` is refused: Extra inputs"),
        ("[pools.scoring]\nmemory = '16GB'", "`pools.scoring.memory` in"),
        ("[pools.update]\nshared_memory = '96Gi'", "shared_memory=96Gi is counted against memory=96Gi"),
        ("[pools.update]\nprocesses = 4", "processes=4 share accelerators=1; each needs its own"),
        ("[pools.scoring]\nprocesses = 2", "scoring has processes=2, but only the stages of `update` train in several"),
        ("[timeouts]\nroll = 5", "timeouts has 'roll', but the stages are encode_prompts"),
        ("[security]\nuser = 0", "`security.user` in"),
        ("[pools.scoring]\ntolerations = [{key = 'a', operator = 'Equal'}]", "Equal needs a value"),
        ("name = ", "cannot be read"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_the_place(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        open_profile(str(path))


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there is no profile `9xB200`") as caught:
        open_profile("9xB200")
    assert caught.value.hint == "the profiles are smoke, 1xA100, 8xH100, spot, or give a .toml file"


def test_quantities_are_those_of_kubernetes() -> None:
    assert bytes_of("16Gi") == 16 * 1024**3
    assert float(cores_of("500m")) == 0.5
    with pytest.raises(ValueError, match="memory"):
        Pool(cpu="1", memory="1G")
