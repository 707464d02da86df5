"""Which packages the mathematics may import. The layers themselves are import-linter's contracts in pyproject.toml."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tdm_r1

PACKAGE = Path(tdm_r1.__file__).parent
DISTRIBUTIONS = packages_distributions()
PURE = [
    *(PACKAGE / f"{name}.py" for name in ("sampling", "advantages", "ema", "rng")),
    *PACKAGE.glob("objectives/*.py"),
]
INSIDE = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PURE}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_the_mathematics_imports_torch_and_the_standard_library_only(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(path)}
    assert roots <= {"torch", "tdm_r1", *sys.stdlib_module_names}
    assert {name for name in imported(path) if name.startswith("tdm_r1")} <= INSIDE


def test_only_numerics_sets_global_state_of_the_tensor_library() -> None:
    setters = {"set_num_threads", "set_default_dtype", "manual_seed"}
    setters |= {"set_deterministic_debug_mode", "use_deterministic_algorithms"}
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in setters
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    }
    outside = {user for user in users if not user.startswith(("pretrain/", "runtime/numerics.py"))}
    assert outside == {"rewards/worker.py"}, "a scoring process is its own: no stage computes there"


def test_a_stage_starts_and_trains_without_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tdm_r1.config import AdamConfig, NumericsConfig\n"
        "from tdm_r1.models.optimizer import RoleOptimizer\n"
        "from tdm_r1.runtime import command, numerics\n"
        "import torch\n"
        "numerics.apply(NumericsConfig(threads=1))\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "assert not torch.is_deterministic_algorithms_warn_only_enabled()\n"
        "role = RoleOptimizer('r', {'a': torch.ones(2)}, AdamConfig(learning_rate=0.1), {})\n"
        "role.backward(role.params['a'].square().sum())\n"
        "role.step(0)\n"
        "assert not torch.equal(role.tensors()['a'], torch.ones(2))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n"


SCORERS_ONLY = """
import sys

absent = set(sys.argv[1].split(","))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from tdm_r1.cli import main
sys.argv = ["tdm-r1", "scorer", "list"]
main()
"""


def locked(image: str) -> set[str]:
    """Distributions of an image, by their normalised names."""
    lock = PACKAGE.parents[1] / "images" / image / "requirements.lock"
    return set(re.findall(r"^([a-z0-9-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_scorer_can_be_imported_with_what_the_image_for_scoring_holds() -> None:
    lacking = locked("train-cpu") - locked("scorers")
    normal = {name: re.sub(r"[-_.]+", "-", name).lower() for name in {d for ds in DISTRIBUTIONS.values() for d in ds}}
    absent = {module for module, found in DISTRIBUTIONS.items() if all(normal[name] in lacking for name in found)}
    assert {"diffusers", "matplotlib"} <= absent
    command = [sys.executable, "-c", SCORERS_ONLY, ",".join(absent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "geneval (tdm-r1)" in done.stdout
    assert "cannot be imported" not in done.stdout


LOOKERS = [
    ["inspect"],
    ["audit", "--all", "--pixels"],
    ["query"],
    ["query", "SELECT avg(reward) FROM rewards"],
    ["lineage"],
    ["lineage", "--sample", "00001-0000-000"],
    ["prune", "--keep-last", "0", "--yes"],
    ["sweep", "--yes"],
]
WITHOUT_TORCH = """
import json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "cv2", "matplotlib"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
from tdm_r1.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["tdm-r1", *words]
    try:
        main()
    except SystemExit as end:
        print("ended", words[0], end.code)
"""


def test_commands_that_only_look_at_a_run_never_import_torch(finished: Path, tmp_path: Path) -> None:
    root = str(shutil.copytree(finished, tmp_path / "run"))
    asked = json.dumps([["--version"], *([*words, "--root", root] for words in LOOKERS)])
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    ended = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ended == [[words[0], "0"] for words in (["--version"], *LOOKERS)]
