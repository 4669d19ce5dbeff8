"""The trial of published figures, tried itself: on small models, with figures that ldm makes."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _pytest.outcomes import Failed, Skipped
from torch import Tensor

import ldm
from tests import reduced, tiny
from tests.weights import philox, test_published
from tests.weights.find import Found, check_folder, find
from tests.weights.table import Case, Release, Table
from tests.weights.trial import SLICES, Trial, noise, sample

ROOT = Path(__file__).parents[2]
CALL = {"sampler": "ddim", "steps": 2, "guidance": 3.0, "prompt": "a dog", "noise": "cpu"}
OUT = "image[0, -3:, -3:, -1]"
WEIGHT = "first_stage_model.decoder.conv_in.bias"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Two models under names that say nothing, one of them a level down, and what is no model."""
    place = tmp_path_factory.mktemp("weights")
    reduced.saved("sd2-v", place / "one.safetensors")
    (place / "more").mkdir()
    (place / "more" / "two").symlink_to(folder)
    (place / "three.ckpt").write_bytes(b"no pickle")
    tiny.hollow(place / "more" / "lora.safetensors", {"x.lora_up.weight": ("F16", (4, 4))})
    (place / "notes.txt").write_text("not looked at")
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Found:
    models, _ = find(folder)
    return next(m for m in models if m.path.name == "one.safetensors")


@pytest.fixture(scope="module")
def right(model: Found) -> Case:
    """A case whose figure was made by a plain call."""
    pipe = ldm.load(model.path, family="sd2")
    size = pipe.family.vae.factor * 8
    images = pipe("a dog", height=size, width=size, num_inference_steps=2, guidance_scale=3.0, seed=0,
                  output_type="np", progress=False).images  # fmt: skip
    figure = SLICES[OUT](images).flatten().tolist()
    return Case("right", "base", "here", call=CALL | {"size": size}, slice=OUT, image=figure)


def wrong(case: Case) -> Case:
    """It with another figure, and none of its own tolerance."""
    return replace(case, id="wrong", image=[x + 0.1 for x in case.image])


def trial(model: Found, *cases: Case, sha256: str | None = None, family: str = "sd2") -> Trial:
    """A table with one release that has the header of the model."""
    release = Release("base", family, model.report.parts["unet"], {"file": sha256} if sha256 else {})
    return Trial(Table({"base": release}, list(cases)))


def test_models_are_found_by_header_and_the_rest_is_named(folder: Path):
    models, others = find(folder)
    assert {m.path.name: m.report.family for m in models} == {"one.safetensors": "sd2-v", "two": "sd1"}
    assert set(others) == {"three.ckpt", "more/lora.safetensors"}
    assert "a LoRA" in others["more/lora.safetensors"]


def test_a_header_fits_its_family_and_size_only(model: Found):
    count = model.report.parts["unet"]
    assert Release("", "sd2-v", count).fits(model)
    assert Release("", "sd2", count).fits(model), "a single file cannot tell which of the two"
    assert not Release("", "sd1", count).fits(model)
    assert not Release("", "sd2", count + 1).fits(model)
    assert Table.read().like(model) == [], "a small model is no official one"


def test_a_right_figure_passes(model: Found, right: Case):
    trial(model, right).judge(right, model)


def test_a_wrong_figure_fails_where_the_hash_or_another_figure_tells_the_release(model: Found, right: Case):
    bad = wrong(right)
    with pytest.raises(Failed, match=r"wrong is off by 0\.1, where 0\.003 is allowed"):
        trial(model, bad, right).judge(bad, model)
    with pytest.raises(Failed, match="wrong is off"):
        trial(model, bad, sha256=model.sha256).judge(bad, model)


def test_a_wrong_figure_is_skipped_with_its_error_where_nothing_does(model: Found, right: Case):
    bad = wrong(right)
    with pytest.raises(Skipped, match=r"off by 0\.1.*may be base.*if it is, this is a bug"):
        trial(model, bad).judge(bad, model)


def test_figures_of_other_releases_are_skipped_by_the_hash(model: Found, right: Case):
    other = replace(right, release="other")
    with pytest.raises(Skipped, match="is base, by its hash; the figure is of other"):
        trial(model, right, other, sha256=model.sha256).judge(other, model)


def test_values_of_weights(model: Found):
    values = tiny.read_all(model.path)[WEIGHT][42:46].tolist()
    case = Case("W", "base", "here", tensor=WEIGHT, slice="flatten()[42:46]", tolerance=1e-7, values=values)
    trial(model, case).judge(case, model)
    bad = replace(case, values=[x * 1.001 for x in values])
    with pytest.raises(Failed):
        trial(model, bad, sha256=model.sha256).judge(bad, model)


def test_latents_between_steps(model: Found, right: Case):
    tested = trial(model, right)
    case = replace(right, image=[], latents=[(0, [])], slice="latents[0, -3:, -3:, -1]")
    _, latents = sample(tested.pipe(model, "base"), case)
    assert len(latents) == CALL["steps"]
    figure = SLICES[case.slice](latents[0]).flatten().tolist()
    assert tested.error(replace(case, id="first", latents=[(0, figure)]), model) == 0
    assert tested.error(replace(case, id="second", latents=[(1, figure)]), model) > 0.01


def test_every_case_runs_or_says_why_not(model: Found, right: Case):
    lost = replace(right, id="lost", release="lost")
    later = replace(right, id="later", call=right.call | {"sampler": "none"})
    barred = replace(right, id="barred", why="needs other downloads: x.npy")
    pairs = trial(model, right, lost, later, barred).table.pairs([model])
    assert {case.id: reason for case, _, reason in pairs} == {
        "right": "",
        "lost": "lost is not in the folder",
        "later": "needs the sampler none, which ldm does not have yet",
        "barred": "needs other downloads: x.npy",
    }


def test_the_published_table_is_whole():
    table = Table.read()
    names = {f"P{i:03}" for i in range(1, 140)} | {f"M{i:02}" for i in range(1, 53)}
    names |= {f"W{i}" for i in range(1, 7)} | {f"N{i:02}" for i in range(1, 60)}
    assert sorted(case.id for case in table.cases) == sorted(names)
    for case in table.cases:
        if case.why or case.schedule:
            continue
        assert case.release in table.releases and case.slice in SLICES, case.id
        assert bool(case.call) != bool(case.tensor), case.id
        assert all(len(x) == 9 for x in [case.image or range(9), *(x for _, x in case.latents)]), case.id


def test_published_ends_of_the_schedule():
    table = Table.read()
    cases = [case for case in table.cases if case.schedule]
    assert len(cases) == 2
    for case in cases:
        Trial(table).judge(case, None)
        bad = replace(case, values=[x * 1.0001 for x in case.values])
        with pytest.raises(Failed):
            Trial(table).judge(bad, None)


def test_noise_of_a_gpu():
    """The figures in the docstring of stable-diffusion-webui's rng_philox.py: seed 0, shape (3, 4)."""
    published = [
        *(-0.92466259, -0.42534415, -2.6438457, 0.14518388),
        *(-0.12086647, -0.57972564, -0.62285122, -0.32838709),
        *(-1.07454231, -0.36314407, -1.67105067, 2.26550497),
    ]
    assert philox.randn(0, 12) == pytest.approx(published, abs=1e-6)
    assert not np.allclose(philox.randn(1, 12), published, atol=1e-3)
    with pytest.raises(ValueError, match="at most 40960"):
        philox.randn(0, 40_961)


def test_noise_of_a_case():
    """On the CPU it is that of `seed=0`; in half precision torch draws other numbers than it rounds to."""
    whole, half = ({"noise": "cpu"} | more for more in ({}, {"half": True}))
    assert torch.equal(noise(whole, (1, 4, 8, 8))[0], ldm.Noise([0], (4, 8, 8))()[0])
    assert torch.equal(noise(half, (1, 4, 8, 8)), noise(half, (1, 4, 8, 8)).half().float())
    first = noise({"noise": "numpy"}, (1, 4, 64, 64)).flatten()[:4].tolist()
    assert first == pytest.approx([1.764052, 0.4001572, 0.978738, 2.240893], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "config", "call"),
    [
        ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False}, {"sampler": "ddim"}),
        ("DDIMScheduler", {}, {"sampler": "ddim", "spacing": "from_zero", "clean": True}),
        ("EulerDiscreteScheduler", {}, {"sampler": "euler", "spacing": "linspace", "start": "sigma"}),
    ],
)
def test_cases_are_sampled_as_diffusers_does_it(pipe: ldm.Pipeline, name: str, config: dict, call: dict):
    scheduler = getattr(pytest.importorskip("diffusers"), name)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **config,
        **({"clip_sample": False} if name == "DDIMScheduler" else {}),
    )  # fmt: skip
    call = CALL | call | {"size": tiny.PNG_SIDE, "guidance": 1.0, "steps": 3}
    _, latents = sample(pipe, Case("", None, "", call=call, latents=[(2, [])]))
    context = pipe.condition(["a dog"]).context
    scheduler.set_timesteps(3)
    x = noise(call, latents[0].shape) * scheduler.init_noise_sigma
    for t, ours in zip(scheduler.timesteps, latents, strict=True):
        x = step(pipe, scheduler, x, t, context)
        # diffusers keeps x / alpha with Euler, and interpolates its sigma between whole steps
        alpha = scheduler_alpha(scheduler)
        assert tiny.error(torch.from_numpy(ours), x * alpha) < 1e-4


def step(pipe: ldm.Pipeline, scheduler, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """One step of a scheduler of diffusers."""
    with torch.no_grad():
        eps = pipe.unet(scheduler.scale_model_input(x, t), t.float().expand(1), context)
    return scheduler.step(eps, t, x).prev_sample


def scheduler_alpha(scheduler) -> float:
    """What x was divided by at the level where the scheduler is: alpha of Karras' sigma, or 1."""
    if not hasattr(scheduler, "sigmas"):
        return 1.0
    return float(1 / (1 + scheduler.sigmas[scheduler.step_index] ** 2) ** 0.5)


@pytest.mark.parametrize(
    ("given", "marks", "sentence"),
    [
        ("none", "weights", "none is not a folder; give one with official files"),
        ("empty", "weights", "has neither .safetensors nor .ckpt nor a folder with model_index.json"),
        ("empty", "not slow and not weights", "add -m weights"),
    ],
)
def test_a_folder_of_no_use_is_one_sentence(tmp_path: Path, given: str, marks: str, sentence: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(pytest.UsageError, match=sentence):
        check_folder(str(tmp_path / given), marks)


@pytest.mark.slow
def test_the_run_ends_with_what_was_found_and_why_cases_were_skipped(folder: Path):
    command = [sys.executable, "-m", "pytest", "tests/weights/test_published.py", "-m", "weights"]
    command += [f"--weights={folder}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = result.stdout
    assert result.returncode == 0, said + result.stderr
    assert "2 passed" in said, "the ends of the schedule need no file"
    assert "one.safetensors: sd2-v, has the header of no release with figures" in said
    assert "three.ckpt: passed over, no model" in said
    assert re.search(r"P044, .*P088.*: CompVis/stable-diffusion-v1-4 is not in the folder", said)
    assert "-rs names" in said


def test_without_a_folder_it_says_what_to_give():
    given: list = []
    config = SimpleNamespace(getoption=lambda name: None)
    metafunc = SimpleNamespace(config=config, parametrize=lambda names, rows: given.extend(rows))
    test_published.pytest_generate_tests(metafunc)  # type: ignore[arg-type]
    (row,) = given
    (mark,) = row.marks
    assert mark.name == "skip" and "--weights=DIR" in mark.kwargs["reason"]
