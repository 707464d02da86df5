"""What leaves a run works without this package: stock diffusers samples the same images from the export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdm_r1 import presets
from tdm_r1.artifacts.manifest import Provenance, sha256_of
from tdm_r1.artifacts.records import Base, join_roles
from tdm_r1.artifacts.repository import commit
from tdm_r1.config import EvaluationConfig
from tdm_r1.errors import ConfigError, MissingParentError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.sampler import trajectory
from tdm_r1.models.sources import ASSETS, open_source
from tdm_r1.pretrain.autoencoder import new_autoencoder, standardise
from tdm_r1.pretrain.scenes import SHAPES
from tdm_r1.pretrain.teacher import new_teacher, save_pipeline
from tdm_r1.rng import Keys
from tdm_r1.runtime.archive import newest_generator
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.generators import open_generator
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.lora_folder import WEIGHTS_FILE, starting_role
from tdm_r1.runtime.measure import measure
from tdm_r1.runtime.release import export_lora, sample_images
from tdm_r1.runtime.run import Run, create_run
from tdm_r1.sampling import sigma_grid
from tests.support import tdm_r1

pytestmark = pytest.mark.slow

PROMPTS = ["a red circle", "a blue square and a green ring"]
STOCK = """
import sys
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

base, export, out, *prompts = sys.argv[1:]
pipe = StableDiffusion3Pipeline.from_pretrained(base, text_encoder_3=None, tokenizer_3=None)
latents = load_file(f"{out}/latents.safetensors")["latents"]
few = dict(num_inference_steps=4, sigmas=[0.999, 0.74925, 0.4995, 0.24975], guidance_scale=1.0)
def draw():
    images = pipe(prompts, latents=latents, height=64, width=64, max_sequence_length=0, output_type="pil", **few).images
    return np.stack([np.asarray(image) for image in images])

plain = draw()
if export:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(export, subfolder="scheduler")
    pipe.load_lora_weights(export)
sequence, _, pooled, _ = pipe.encode_prompt(
    prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
)
tuned = draw()
save_file(
    {
        "plain": torch.from_numpy(plain), "tuned": torch.from_numpy(tuned), "sigmas": pipe.scheduler.sigmas,
        "sequence": sequence.contiguous(), "pooled": pooled.contiguous(),
    },
    f"{out}/stock.safetensors",
)
assert not [name for name in sys.modules if name.startswith("tdm_r1")], "the sampling part must not need us"
"""


def random_pipeline(folder: Path) -> Path:
    """A stock pipeline folder with random weights."""
    with tempfile.TemporaryDirectory() as scratch:
        vae = standardise(SHAPES, new_autoencoder().eval(), seed=0, count=32)
        save_pipeline(new_teacher(SHAPES, Path(scratch), seed=0), vae, folder)
    return folder


def committed_base(run: Run) -> RoleTensors:
    """Commit a stage 0 whose LoRA changes the base visibly, and return its averaged generator."""
    adapter, keys = Adapter(run.backbone.base(), run.config.model.adapter), Keys(0, 0)
    role = adapter.new(keys, "generator")
    for name in [name for name in role if name.endswith(".lora_B")]:
        role[name] = 0.1 * keys.normal("perturbation", name, shape=tuple(role[name].shape))
    metrics = Base.table("metrics", step=[0], name=["generator/kl"], value=[0.0])
    record = Base(state=join_roles({"generator_ema": role}), optimizer={}, metrics=metrics)
    now = datetime.now(UTC)
    made = Provenance(
        code_version="test", libraries={}, device="cpu", threads=1, started=now, finished=now, seconds=0.0, seed_root=0
    )
    commit(run.store, "base", record, parents={}, config_digest=run.config_digest, provenance=made)
    return role


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("release")
    source = random_pipeline(folder / "pipeline")
    run = create_run(str(folder / "run"), presets.resolve("shapes_smoke", {"model.source": str(source)}))
    execute(run, Task("encode_prompts"))
    return run


@pytest.fixture(scope="module")
def role(run: Run) -> RoleTensors:
    return committed_base(run)


@pytest.fixture(scope="module")
def export(run: Run, role: RoleTensors) -> Path:
    return export_lora(run.root, Path(run.root).parent / "export", iteration=None)


@pytest.fixture(scope="module")
def stock(run: Run, export: Path) -> dict[str, Tensor]:
    """What a process without this package draws from the same noise."""
    out = Path(run.root).parent
    save_file({"latents": noise(run)}, out / "latents.safetensors")
    command = [sys.executable, "-c", STOCK, run.config.model.source, str(export), str(out), *PROMPTS]
    subprocess.run(command, check=True, cwd=out)
    found: dict[str, Tensor] = load_file(out / "stock.safetensors")
    return found


def noise(run: Run) -> Tensor:
    return Keys(7, 0).normals("test", PROMPTS, shape=run.backbone.latent_shape)


def ours(run: Run, weights: dict[str, Tensor]) -> Tensor:
    path = trajectory(run.backbone, noise(run), run.backbone.encode_prompts(PROMPTS), weights, run.config.sampler, 8)
    return run.backbone.decode(path[:, -1])


def distance(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def test_stock_diffusers_draws_our_images_from_the_export(
    run: Run, role: RoleTensors, stock: dict[str, Tensor]
) -> None:
    weights = Adapter(run.backbone.base(), run.config.model.adapter).apply(role)
    assert distance(stock["tuned"], ours(run, weights)) <= 1


def test_the_adapter_changes_the_images(stock: dict[str, Tensor]) -> None:
    assert distance(stock["tuned"], stock["plain"]) > 20


def test_stock_diffusers_draws_our_images_from_the_base_alone(run: Run, stock: dict[str, Tensor]) -> None:
    assert distance(stock["plain"], ours(run, {})) <= 1


def test_stock_sigmas_are_our_grid(stock: dict[str, Tensor]) -> None:
    torch.testing.assert_close(stock["sigmas"], torch.tensor(sigma_grid(4, 3.0)), atol=1e-6, rtol=0)


def test_the_pipeline_conditions_on_the_eleven_tokens_that_we_condition_on(run: Run, stock: dict[str, Tensor]) -> None:
    condition = run.backbone.encode_prompts(PROMPTS)
    assert stock["sequence"].shape == (2, 11, 96)
    torch.testing.assert_close(stock["sequence"], condition.sequence)
    torch.testing.assert_close(stock["pooled"], condition.pooled)


def test_the_code_of_the_model_card_runs_as_it_stands(export: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert np.asarray(Image.open(tmp_path / "image.png")).shape == (64, 64, 3)


def test_the_model_card_names_the_record_and_the_base(run: Run, export: Path) -> None:
    card = (export / "README.md").read_text()
    assert run.manifest(Task("distill_base")).digest in card
    assert "This iteration was not evaluated" in card


def test_another_prompt_leaves_the_images_of_the_first_as_they_were(
    run: Run, role: RoleTensors, tmp_path: Path
) -> None:
    def pixels(prompts: list[str], seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(
            Image.open(sample_images(open_generator(run.root, None), prompts, tmp_path / "a.png", count=2, seed=seed))
        )

    both, first, other = pixels(PROMPTS, 1), pixels(PROMPTS[:1], 1), pixels(PROMPTS, 2)
    high = first.shape[0] - 30
    assert distance(torch.tensor(both[40:high]), torch.tensor(first[40:high])) <= 1
    assert distance(torch.tensor(both[40:high]), torch.tensor(other[40:high])) > 20


def test_an_export_is_sampled_and_judged_like_the_run_that_it_came_from(
    run: Run, role: RoleTensors, export: Path
) -> None:
    committed, exported = open_generator(run.root, None), open_generator(None, str(export))
    assert exported.name == committed.name == "tdm"
    first, second = (
        ours(run, Adapter(run.backbone.base(), g.config.model.adapter).apply(g.role)) for g in (committed, exported)
    )
    assert distance(first, second) <= 1
    section = EvaluationConfig(prompts=12, teacher_steps=0, bootstrap=50)
    rows = [measure(g, section, seed=3, with_teacher=False, page=None)["rows"] for g in (committed, exported)]
    assert rows[0] == rows[1]
    assert rows[0][0]["nfe"] == 4


@pytest.mark.parametrize(("asset", "name"), [("shapes_r1", "tdm-r1"), ("shapes_tdm", "tdm")])
def test_a_committed_export_opens_and_was_made_on_the_committed_base(asset: str, name: str) -> None:
    generator = open_generator(None, f"embedded:{asset}")
    assert generator.name == name
    assert set(generator.role) == set(
        Adapter(generator.backbone.base(), generator.config.model.adapter).new(Keys(0, 0), "x")
    )
    base = ASSETS / "shapes" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert sha256_of(base) in (ASSETS / asset / "README.md").read_text()


def test_the_demonstration_starts_from_the_committed_tdm() -> None:
    config = presets.resolve("shapes_cpu", {})
    committed = open_generator(None, "embedded:shapes_tdm")
    found = starting_role(config, committed.backbone.base(), open_source(config.model).revision)
    assert found is not None
    scale = config.model.adapter.alpha / config.model.adapter.rank
    for name, tensor in committed.role.items():
        assert torch.equal(found[name] * (scale if name.endswith(".lora_B") else 1), tensor)


@pytest.mark.parametrize(
    ("root", "lora", "iteration"),
    [(None, None, None), ("run", "lora", None), (None, "lora", 3), (None, "no-such", None)],
)
def test_what_names_no_generator_is_refused(root: str | None, lora: str | None, iteration: int | None) -> None:
    with pytest.raises(ConfigError, match=r"--root RUN|--lora embedded"):
        open_generator(root, lora, iteration)


def test_a_run_without_a_generator_says_what_to_do(run: Run, tmp_path: Path) -> None:
    empty = create_run(str(tmp_path / "empty"), run.config)
    with pytest.raises(MissingParentError, match=r"no generator yet[\s\S]*tdm-r1 run --root"):
        newest_generator(empty)


def test_full_weights_are_refused(tmp_path: Path, run: Run) -> None:
    changed = presets.resolve("shapes_smoke", {"model.source": run.config.model.source, "model.adapter.kind": "full"})
    create_run(str(tmp_path / "full"), changed)
    with pytest.raises(ConfigError, match="kind is `full`"):
        export_lora(str(tmp_path / "full"), tmp_path / "export", iteration=None)


def test_an_export_is_traced_to_the_run_that_it_came_from(
    run: Run, role: RoleTensors, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for file in (export, export / WEIGHTS_FILE):
        assert tdm_r1("lineage", str(file), "--root", run.root, "--json") == 0
        graph = json.loads(capsys.readouterr().out)
        assert (graph["head"], graph["released"]["kind"]) == ("base", "lora")
        assert graph["released"]["record"] == run.manifest(Task("distill_base")).digest
        assert any(name.startswith("transformer/") for name in graph["weights"]["files"])
    assert tdm_r1("lineage", str(export)) == 2
    assert "--root RUN" in capsys.readouterr().err


def test_an_export_with_one_changed_weight_is_not_that_of_its_run(
    run: Run, role: RoleTensors, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with safe_open(export / WEIGHTS_FILE, framework="pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, tmp_path / "changed.safetensors", metadata=about)
    capsys.readouterr()
    assert tdm_r1("lineage", str(tmp_path / "changed.safetensors"), "--root", run.root, "--json") == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert f"1 tensors of {tmp_path}/changed.safetensors are not those of base, first {name}" in fault
