"""Claims about `model.compile`: the plain network's answers and gradients, of the role that was asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from tdm_r1.config import AdapterConfig
from tdm_r1.models import compiled
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.factored import Factors, Rows, Share
from tdm_r1.models.pipeline import PipelineBackbone
from tdm_r1.models.skeletons import Part, likeness, with_factors
from tdm_r1.rng import Keys
from tests.tiny import TINY_PIPELINES, tiny_z_image
from tests.unit.tiny_roles import LORA, ROWS, asked, gradients, opened

pytestmark = [  # the compiler hides some of its own warnings, but not from a test run where they are errors
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
NEAR = 1e-5
"""Of the largest number."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TINY_PIPELINES.items()}


def adapter_of(name: str, application: str) -> AdapterConfig:
    return AdapterConfig.model_validate({"application": application, "rank": 4, "targets": LORA[name]})


def drawn(fitted: Adapter, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in fitted.new(Keys(0, 0), "a").items()}


@torch.no_grad()
def answers(backbone: PipelineBackbone, name: str, application: str, seeds: range) -> list[Tensor]:
    fitted = Adapter(backbone.base(), adapter_of(name, application))
    x, sigma, condition, _ = asked(backbone, name)
    return [backbone.velocity(x, sigma, condition, fitted.apply(drawn(fitted, seed))) for seed in seeds]


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR * float(expected.abs().max()))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of `torch.compile` with torch's own kernels: what is ours is in them, and no C++ is built."""
    monkeypatch.setattr(compiled, "BACKEND", {"backend": "aot_eager"})


def assert_same_gradients(folder: Path, name: str, application: str, **options: object) -> None:
    adapter = adapter_of(name, application)
    plain_loss, plain = gradients(opened(folder, name, **options), name, adapter)
    loss, found = gradients(opened(folder, name, compile=True, **options), name, adapter)
    assert_near(loss, plain_loss)
    assert len(plain) > 4
    assert plain.keys() == found.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for key, gradient in plain.items():
        assert float((gradient - found[key]).abs().max()) < NEAR * largest, key


@pytest.mark.parametrize("application", ["merged", "factored"])
def test_built_by_the_compiler_gradients_are_those_of_the_plain_network(
    application: str, folders: dict[str, Path]
) -> None:
    assert_same_gradients(folders["sd3"], "sd3", application)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "application", "checkpointing"),
    [
        ("sd3", "merged", False),
        ("sd3", "factored", True),
        ("z_image", "factored", False),
        ("z_image", "merged", True),
        ("flux", "factored", True),
        ("flux", "merged", False),
    ],
)
def test_gradients_of_a_role_are_those_of_the_plain_network(
    name: str, application: str, checkpointing: bool, folders: dict[str, Path]
) -> None:
    assert_same_gradients(folders[name], name, application, checkpointing=checkpointing)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("application", ["merged", "factored"])
def test_with_autocast_a_compiled_role_answers_as_the_plain_network_does(
    application: str, folders: dict[str, Path]
) -> None:
    options = {"autocast": "bfloat16"}
    (expected,) = answers(opened(folders["sd3"], "sd3", **options), "sd3", application, range(1))
    (found,) = answers(opened(folders["sd3"], "sd3", compile=True, **options), "sd3", application, range(1))
    (exact,) = answers(opened(folders["sd3"], "sd3"), "sd3", application, range(1))
    assert float((found - exact).norm()) > 1e-4 * float(exact.norm())
    assert float((found - expected).norm()) < 0.01 * float(exact.norm())


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "application"), [("sd3", "merged"), ("sd3", "factored"), ("z_image", "factored"), ("flux", "factored")]
)
def test_every_role_answers_for_itself_and_none_compiles_anew(
    name: str, application: str, folders: dict[str, Path]
) -> None:
    eager = answers(opened(folders[name], name), name, application, range(3))
    backbone = opened(folders[name], name, compile=True)
    first = answers(backbone, name, application, range(1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        others = answers(backbone, name, application, range(1, 3))
    for found, expected in zip([*first, *others], eager, strict=True):
        assert_near(found, expected)
    assert float((eager[0] - eager[1]).abs().max()) > 0.01


@pytest.mark.usefixtures("traced")
def test_blocks_of_one_kind_are_compiled_once(tmp_path: Path) -> None:
    folder = tiny_z_image(tmp_path, layers=5)
    torch._dynamo.reset()
    counters.clear()
    answers(opened(folder, "z_image", compile=True), "z_image", "factored", range(1))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 3, "image refiner and layers see different lengths, and the prompt's refiner is of another kind"


@pytest.mark.usefixtures("traced")
@torch.no_grad()
def test_roles_of_one_pass_answer_as_each_does_alone(folders: dict[str, Path]) -> None:
    """Two roles of different rank, scale and layers beside rows of the base, in both orders."""
    plain, fast = (opened(folders["sd3"], "sd3", compile=flag) for flag in (False, True))
    small = Adapter(plain.base(), AdapterConfig(application="factored", rank=2, alpha=6.0, targets=("attn.to_v",)))
    large = Adapter(plain.base(), adapter_of("sd3", "factored"))
    one, two = (fitted.apply(drawn(fitted, seed)) for seed, fitted in enumerate((small, large)))
    assert isinstance(one, Factors)
    assert isinstance(two, Factors)
    x, sigma, condition, _ = asked(plain, "sd3")
    for roles in ((one, None, two), (two, one, None), (one, one, one)):
        mixed = Rows([Share(1, role) for role in roles])
        together = fast.velocity(x, sigma, condition, mixed)
        for row, role in enumerate(roles):
            at = slice(row, row + 1)
            alone = plain.velocity(x[at], sigma[at], condition.take(at), role or {})
            assert_near(together[at], alone)


@pytest.mark.usefixtures("traced")
def test_roles_whose_rows_are_not_those_of_the_batch_are_refused(folders: dict[str, Path]) -> None:
    backbone = opened(folders["sd3"], "sd3", compile=True)
    fitted = Adapter(backbone.base(), adapter_of("sd3", "factored"))
    role = fitted.apply(drawn(fitted, 0))
    assert isinstance(role, Factors)
    x, sigma, condition, _ = asked(backbone, "sd3")
    with pytest.raises(Exception, match="split"), torch.no_grad():
        backbone.velocity(x, sigma, condition, Rows([Share(ROWS + 1, role)]))


def test_a_difference_in_shape_or_setting_makes_another_kind() -> None:
    def block(width: int = 4, epsilon: float = 1e-5) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.LayerNorm(width, eps=epsilon))

    assert likeness(block()) == likeness(block())
    different = {likeness(one) for one in (block(), block(8), block(epsilon=1e-6), block().to(torch.bfloat16))}
    assert len(different) == 4
    odd = [block(), block()]
    for one in odd:
        one.table = torch.ones(2)  # a number that is no parameter could be another in each block
    assert likeness(odd[0]) != likeness(odd[1])


def test_a_layer_that_is_not_linear_is_refused_and_not_left_without_its_factors() -> None:
    with pytest.raises(TypeError, match="factors cannot be added"):
        with_factors(torch.nn.Sequential(torch.nn.LayerNorm(4)), (("0", (Part(1, 0, 1.0),)),))


AGAIN = """
import sys
from pathlib import Path
import torch
from tests.unit.test_compiled import answers
from tests.unit.tiny_roles import opened
torch.set_num_threads(1)
(found,) = answers(opened(Path(sys.argv[1]), "sd3", compile=True), "sd3", "factored", range(1))
print(found.numpy().tobytes().hex())
"""


def test_two_processes_that_compile_for_themselves_answer_with_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def once(number: int) -> str:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(number)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", AGAIN, str(folders["sd3"])]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert once(0) == once(1) != ""


def test_without_a_compiler_the_run_is_refused_with_a_hint(folders: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.tiny_roles import opened; "
        "opened(Path(sys.argv[1]), 'sd3', compile=True)"
    )
    environment = {**os.environ, "CXX": "no-such-compiler"}
    command = [sys.executable, "-c", code, str(folders["sd3"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ConfigError: model.compile is true, but this machine has no C++ compiler" in done.stderr
