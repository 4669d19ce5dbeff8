"""The configs among the examples: they are read as they stand, and what their comments say is so."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes"))

from export_images import export_images
from recipe import Recipe

import ldm
from ldm.cli import main
from ldm.families import SD1, SHAPES
from ldm.training.buckets import sizes
from ldm.training.changes import fields
from ldm.training.config import plain, read
from ldm.training.settings import DTYPES, DiffusionSettings, check, free
from ldm.training.sheets import BINS
from ldm.unet import UNet

tomllib = pytest.importorskip("tomllib")  # Python 3.11

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES_TOML, SD15_TOML = EXAMPLES / "shapes" / "shapes.toml", EXAMPLES / "sd15-finetune.toml"
FLOAT = 4  # bytes


def comments(path: Path) -> dict[str, str]:
    """What a file says beside each of its keys."""
    found, part = {}, ""
    for line in path.read_text("utf-8").splitlines():
        if table := re.fullmatch(r"\[(\w+)\]", line):
            part = f"{table[1]}."
        elif key := re.match(r"(\w+) = ", line):
            found[part + key[1]] = line.partition("  #")[2].strip()
    return found


def count(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


@pytest.mark.parametrize("path", [SHAPES_TOML, SD15_TOML], ids=lambda path: path.name)
def test_every_key_is_a_setting_and_explained(path: Path, tmp_path: Path):
    settings, told = read(DiffusionSettings, path, [f"data.path={tmp_path}"]), comments(path)
    check(settings)
    unsaid = [key for key, words in told.items() if not words]
    assert set(unsaid) <= {"seed", "batch"}
    known = {name for name, _ in fields(plain(settings))}
    assert told.keys() <= known


def test_the_config_of_the_bundled_model_is_the_recipe_s_first_pass():
    settings, (first, *_) = read(DiffusionSettings, SHAPES_TOML), Recipe().passes
    assert (settings.steps, settings.batch, settings.rate) == (first.steps, first.batch, first.rate)
    assert settings.warmup == first.warmup and not first.muon
    recipe = Recipe()
    assert (settings.ema, settings.power, settings.drop) == (recipe.ema, recipe.power, recipe.drop)
    assert settings.data.size == SHAPES.size and settings.prediction == SHAPES.prediction.name
    # the comments
    assert settings.fresh == settings.networks == ("unet",) and settings.model == ""
    assert settings.steps * settings.batch == 522_000 and 522_000 // 20_000 == 26
    assert count(SHAPES.unet) == pytest.approx(2.3e6, rel=0.02)
    assert 1 / (1 - settings.betas[1]) == pytest.approx(100) and 1 / (1 - settings.ema) == pytest.approx(500)
    assert set(ldm.load().origin.dtypes.values()) == {DTYPES[settings.saved]}
    latent = 2 * SHAPES.vae.latent_channels * (SHAPES.size // SHAPES.vae.factor) ** 2 * FLOAT
    assert latent == pytest.approx(33e3, rel=0.01)
    assert settings.schedule == "cosine" and BINS == 10


def test_the_comments_of_the_finetuning_config_are_true():
    settings, told = read(DiffusionSettings, SD15_TOML), comments(SD15_TOML)
    head = SD15_TOML.read_text("utf-8").split("\n\n")[0]
    may = re.search(r"Of what is set here(.*?)may then be\n# changed", head, re.S)[1]
    said = set(re.findall(r"\w+", may)) - {"and", "all", "of", "the"}
    mine = {key.rpartition(".")[2] if key.startswith("data") else key.split(".")[0] for key in told}
    names = {name.rpartition(".")[2] for name in free(settings)} - {"steps"}
    assert said == names & mine and "steps" in free(settings) and settings.schedule == "constant"

    weights = count(SD1.unet)
    assert weights == pytest.approx(860e6, rel=1e-3) and settings.networks == ("unet",)
    assert settings.steps * settings.batch == 640_000 == 64 * 10_000
    assert settings.batch // settings.accumulate == 8
    assert settings.rate == pytest.approx(1e-4 / 10) and 1 / (1 - settings.ema) == pytest.approx(10_000)
    assert SD1.prediction.name == "eps" and SD1.schedule.steps == 1000 and settings.times == "uniform"
    assert settings.precision == "bf16" and settings.recompute and settings.spread == "ddp"
    # weights, gradients, AdamW's two means and the mean of the weights; a checkpoint has no gradients
    assert 5 * weights * FLOAT == pytest.approx(17e9, rel=0.02)
    assert 4 * weights * FLOAT == pytest.approx(14e9, rel=0.02)

    data, (text,) = settings.data, SD1.texts
    assert data.size == SD1.size and data.buckets % SD1.unit == 0
    areas = [wide * high for wide, high in sizes(data.size, data.buckets)]
    assert areas == pytest.approx([data.size**2] * len(areas), rel=data.buckets / (2 * data.size))
    assert data.crop == "center" and data.flip == 0
    assert 2 * 4 * (data.size // 8) ** 2 * FLOAT == pytest.approx(131e3, rel=0.01)
    assert text.config.length * text.config.width * FLOAT == pytest.approx(237e3, rel=0.01)
    assert text.config.length - 2 == 75 and settings.sheet.guidance == SD1.guidance and BINS == 10


def test_the_bundled_model_s_config_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export_images(tmp_path / "shapes", 20)
    words = {
        "data.path": tmp_path / "shapes", "out": tmp_path / "run", "device": "cpu", "steps": 2, "batch": 4,
        "warmup": 1, "sheet.images": 4, "sheet.prompts": "['a red star']", "sheet.steps": 2,
    }  # fmt: skip
    options = [f"{key}={value}" for key, value in words.items()]
    main(["train", "diffusion", "--config", str(SHAPES_TOML), *options])
    assert (tmp_path / "run" / "card.md").exists() and len(list((tmp_path / "run" / "sheets").iterdir())) == 1
    made, before = ldm.load(tmp_path / "run" / "model"), ldm.load()
    assert made.family == before.family
    assert torch.equal(made.vae.from_latent.weight, before.vae.from_latent.weight)
    assert not made.unet.conv_out.weight.allclose(before.unet.conv_out.weight)
    assert made.unet.conv_out.weight.abs().max() < 0.01  # two steps from 0
