"""No file is ever executed: nothing here pickles, evaluates text, or starts a shell."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.ir import _LOADER

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "components", "pipelines") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
RESTRICTED = "src/tdm_r1/artifacts/restricted.py"
"""Opens other programs' checkpoints by the reader of torch that builds tensors and runs nothing."""
SHELLS = {"subprocess.getoutput", "subprocess.getstatusoutput"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {str(node.module).partition(".")[0], *(names & (CALLS | SHELLS))}
    return set()


def dangers(text: str) -> set[str]:
    """What in a source could execute the content of a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        found |= imports(node) & (MODULES | CALLS | SHELLS)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            found |= {name} & (CALLS | BUILTINS | SHELLS)
            if name == "torch.load" and any(k.arg == "weights_only" and on(k.value) for k in node.keywords):
                found = (found - {name}) | {"restricted torch.load"}
            found |= {f"{k.arg}=" for k in node.keywords if k.arg in ("shell", "allow_pickle") and not off(k.value)}
            found |= {"weights_only=" for k in node.keywords if k.arg == "weights_only" and not on(k.value)}
    return found


def on(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def off(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.parametrize(
    ("text", "danger"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from torch import load", "torch.load"),
        ("torch.load('x', weights_only=False)", "torch.load"),
        ("torch.load('x', weights_only=yes)", "weights_only="),
        ("torch.load('x', weights_only=True)", "restricted torch.load"),
        ("np.load('x', allow_pickle=True)", "allow_pickle="),
        ("yaml.load(x)", "yaml.load"),
        ("eval('1')", "eval"),
        ("exec(x)", "exec"),
        ("subprocess.run('x', shell=True)", "shell="),
        ("os.system('x')", "os.system"),
    ],
)
def test_each_danger_would_be_found(text: str, danger: str) -> None:
    assert danger in dangers(text)


@pytest.mark.parametrize(
    "text", ["subprocess.run(['x'], shell=False)", "re.compile('x')", "model.eval()", "yaml.safe_load(x)"]
)
def test_what_is_harmless_is_not_found(text: str) -> None:
    assert dangers(text) == set()


def test_no_source_can_execute_the_content_of_a_file() -> None:
    assert len(SOURCES) > 100
    found = {path.relative_to(ROOT).as_posix(): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    expected = {RESTRICTED: {"restricted torch.load"}, "pipelines/ir.py": {"yaml.load_all"}}
    assert {name: what for name, what in found.items() if what} == expected
    assert issubclass(_LOADER, yaml.SafeLoader | yaml.CSafeLoader), "the fast loader of the pipelines is a safe one"


LIGHT = """
import sys
import tdm_r1.errors, tdm_r1.config, tdm_r1.presets
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_core_without_heavy_libraries_imports_nothing_that_unpickles() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tdm_r1" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow", "yaml", "dill", "cloudpickle", "joblib", "shelve"}
