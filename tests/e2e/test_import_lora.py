"""Adapters of other programs become ours, draw the same images, go back, and are refused when they do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdm_r1.config import SamplerConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.sampler import trajectory
from tdm_r1.rng import Keys
from tdm_r1.runtime.generators import open_generator
from tdm_r1.runtime.lora_folder import WEIGHTS_FILE
from tdm_r1.runtime.release import write_ema_list
from tests.support import once, settings, tdm_r1
from tests.tiny import EIGHT, TINY_PIPELINES

PROMPTS = ["a red circle", "two blue squares"]
TARGETS = {
    "sd3": ["attn." + part for part in ("to_q", "to_k", "to_v", "to_out.0")]
    + ["attn." + part for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")],
    "z_image": ["to_q", "to_k", "to_v", "to_out.0"],
}
RANK, ALPHA = 4, 8.0


@dataclass(frozen=True)
class Published:
    """A pipeline whose adapter peft made, as the authors make theirs."""

    backbone: str
    folder: Path
    pipeline: Any
    parameters: list[Tensor]

    @property
    def knobs(self) -> dict[str, Any]:
        names = str(TARGETS[self.backbone]).replace("'", '"')
        return {
            "model.backbone": self.backbone, "model.source": self.folder, "model.resolution": EIGHT,
            "model.max_tokens": 8, "model.adapter.rank": RANK, "model.adapter.alpha": ALPHA,
            "model.adapter.targets": names,
        }  # fmt: skip

    @property
    def noise(self) -> Tensor:
        return Keys(3, 0).normals("noise", PROMPTS, shape=(4, 8, 8))

    def images(self, pipeline: Any) -> Tensor:
        """Latents that stock diffusers ends with."""
        guidance = {"guidance_scale": 0.0 if self.backbone == "z_image" else 1.0}
        drawn: Tensor = pipeline(
            list(PROMPTS), height=EIGHT, width=EIGHT, sigmas=[0.999, 0.74925, 0.4995, 0.24975], num_inference_steps=4,
            latents=self.noise, max_sequence_length=8, output_type="latent", **guidance,
        ).images  # fmt: skip
        return drawn

    def imported(self, path: Path, out: Path, *more: str) -> int:
        return tdm_r1(
            "import-lora", str(path), "--out", str(out), "--preset", "shapes_smoke", *settings(self.knobs), *more
        )


def ours(folder: Path) -> Tensor:
    """Latents of an imported folder."""
    generator = open_generator(None, str(folder))
    backbone, config = generator.backbone, generator.config
    weights = Adapter(backbone.base(), config.model.adapter).apply(generator.role)
    noise = Keys(3, 0).normals("noise", PROMPTS, shape=backbone.latent_shape)
    return trajectory(backbone, noise, backbone.encode_prompts(PROMPTS), weights, SamplerConfig(), 8)[:, -1]


def stock(backbone: str, folder: Path) -> Any:
    import diffusers

    kind = {"sd3": "StableDiffusion3Pipeline", "z_image": "ZImagePipeline"}[backbone]
    pipeline = getattr(diffusers, kind).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["sd3", "z_image"])
def published(request: pytest.FixtureRequest, shared: Path) -> Published:
    from peft import LoraConfig, get_peft_model

    name: str = request.param
    folder = once(shared / f"tiny-{name}", TINY_PIPELINES[name])
    pipeline = stock(name, folder)
    wanted = LoraConfig(r=RANK, lora_alpha=int(ALPHA), init_lora_weights="gaussian", target_modules=TARGETS[name])
    pipeline.transformer = get_peft_model(pipeline.transformer, wanted, adapter_name="tdm")
    parameters = [p for n, p in pipeline.transformer.named_parameters() if "tdm" in n and p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return Published(name, folder, pipeline, [p.detach() for p in parameters])


@pytest.fixture(scope="module")
def checkpoint(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the authors publish: the tensors of their moving average, in order, without names."""
    path = tmp_path_factory.mktemp("published") / "tdm_lora.ckpt"
    torch.save({"decay": 0.9, "ema_parameters": published.parameters}, path)
    return path


def test_the_authors_list_draws_the_same_images_after_import_here_and_in_stock_diffusers(
    published: Published, checkpoint: Path, tmp_path: Path
) -> None:
    assert published.imported(checkpoint, tmp_path / "lora") == 0
    expected = published.images(published.pipeline)
    torch.testing.assert_close(ours(tmp_path / "lora"), expected, rtol=0, atol=1e-5)
    plain = stock(published.backbone, published.folder)
    before = published.images(plain)
    plain.load_lora_weights(str(tmp_path / "lora"))
    torch.testing.assert_close(published.images(plain), expected, rtol=0, atol=1e-5)
    assert (before - expected).abs().max() > 0.1


def test_the_list_goes_back_bit_for_bit(published: Published, checkpoint: Path, tmp_path: Path) -> None:
    assert published.imported(checkpoint, tmp_path / "lora") == 0
    generator = open_generator(None, str(tmp_path / "lora"))
    write_ema_list(
        tmp_path / "ema.ckpt", generator.role, Adapter(generator.backbone.base(), generator.config.model.adapter)
    )
    again = torch.load(tmp_path / "ema.ckpt", weights_only=True)["ema_parameters"]
    assert len(again) == len(published.parameters)
    assert all(torch.equal(a, b) for a, b in zip(again, published.parameters, strict=True))


@pytest.mark.parametrize("dialect", ["peft", "diffusers", "old"])
def test_named_files_of_every_dialect_give_the_same_adapter(
    published: Published, checkpoint: Path, dialect: str, tmp_path: Path
) -> None:
    assert published.imported(checkpoint, tmp_path / "list") == 0
    file = tmp_path / "file" / "adapter_model.safetensors"
    if dialect == "peft":
        published.pipeline.transformer.save_pretrained(file.parent)
        file = file.parent / "tdm"
        more: tuple[str, ...] = ()  # adapter_config.json says alpha
    else:
        file.parent.mkdir()
        save_file({_spell(name, dialect): t for name, t in _named(published).items()}, file)
        more = ("--alpha", str(ALPHA))
    assert published.imported(file, tmp_path / "named", *more) == 0
    first, second = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("list", "named"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _named(published: Published) -> dict[str, Tensor]:
    found = {n: p.detach() for n, p in published.pipeline.transformer.named_parameters() if "tdm" in n}
    return {name.removeprefix("base_model.model.").replace(".tdm", ""): tensor for name, tensor in found.items()}


def _spell(name: str, dialect: str) -> str:
    if dialect == "diffusers":
        return f"transformer.{name}"
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def test_alpha_changes_the_product_as_it_says(published: Published, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(_named(published), file)
    for name, alpha in (("whole", "8"), ("eighth", "1")):
        assert published.imported(file, tmp_path / name, "--alpha", alpha) == 0
    whole, eighth = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "eighth"))
    for key in whole:
        torch.testing.assert_close(eighth[key], whole[key] / (8 if "lora_B" in key else 1))


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"model.adapter.rank": 8}, "has rank 4, but model.adapter.rank is 8", "--set model.adapter.rank=4"),
        ({"model.adapter.targets": '["to_q", "to_k"]'}, "adapted layers of two each", "model.adapter.targets"),
    ],
)
def test_a_list_of_another_rank_or_other_layers_is_refused(
    published: Published, checkpoint: Path, change: dict[str, Any], message: str, hint: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert published.imported(checkpoint, tmp_path / "out", *settings(change)) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert message in said
    assert hint in said
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_base_is_refused_by_its_names_and_by_its_shapes(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = _named(published)
    first = sorted(name for name in named if "lora_A" in name)[0]
    longer = {name: torch.cat([t, t], dim=1) if name == first else t for name, t in named.items()}
    foreign = {name.replace("blocks", "layers").replace("refiner", "other"): t for name, t in named.items()}
    for number, (tensors, text) in enumerate([(longer, "it was made for another base"), (foreign, "no such layer")]):
        if published.backbone == "z_image" and tensors is foreign:
            tensors = {name.replace("layers", "blocks"): t for name, t in tensors.items()}  # noqa: PLW2901
        file = tmp_path / f"{number}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        assert published.imported(file, tmp_path / "out") == 2
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_a_file_that_would_execute_code_is_refused_and_executes_none(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"ema_parameters": [Trap()]}, tmp_path / "trap.ckpt")
    assert published.imported(tmp_path / "trap.ckpt", tmp_path / "out") == 2
    assert "without executing code" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "sprung").exists()


def test_a_run_starts_from_an_imported_adapter_in_place_of_stage_0(
    published: Published, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert published.imported(checkpoint, tmp_path / "lora") == 0
    start = {**published.knobs, "distill.adapter": tmp_path / "lora", "distill.steps": 0}
    root = tmp_path / "run"
    assert tdm_r1("init", "--root", str(root), "--preset", "shapes_smoke", *settings(start)) == 0
    for stage in ("encode_prompts", "distill_base"):
        assert tdm_r1("stage", stage, "--root", str(root)) == 0
    committed = open_generator(str(root), None, 0).role
    assert len(committed) == len(published.parameters)
    exported = load_file(tmp_path / "lora" / WEIGHTS_FILE)
    for name, tensor in committed.items():
        scale = ALPHA / RANK if name.endswith("lora_B") else 1
        assert torch.equal(tensor * scale, exported[f"transformer.{name}.weight"])
    wrong = {**start, "model.adapter.rank": 8}
    capsys.readouterr()
    assert tdm_r1("run", "--root", str(tmp_path / "other"), "--preset", "shapes_smoke", *settings(wrong)) == 2
    assert "has rank 4, but model.adapter.rank is 8" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "other" / "run.json").exists()
