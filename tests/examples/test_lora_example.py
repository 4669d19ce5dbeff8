"""The example of a LoRA: its scenes, its config, two steps of training, and what the shipped LoRA paints."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "lora"))

import judge_houses
from house import UNSEEN, WORD, house_prompts, known, scene_with_a_house, training_pairs
from judge_houses import comes_off, drawn, same, shares, with_lora
from write_houses import write_houses

import ldm
from ldm.evaluation.shapes.captions import KIND_WORDS, describe
from ldm.evaluation.shapes.judge import judge
from ldm.evaluation.shapes.world import COLOURS, KINDS, draw
from ldm.training.config import read
from ldm.training.recipes import train_lora
from ldm.training.settings import LoraSettings, check

FOLDER = Path(__file__).parents[2] / "examples" / "lora"
SHIPPED = FOLDER / "houses.safetensors"


@pytest.fixture(autouse=True)
def restored():
    """No test leaves houses in the world."""
    before = dict(KINDS), dict(KIND_WORDS)
    yield
    assert before == (KINDS, KIND_WORDS) and list(KINDS) == list(before[0])


def test_houses_are_known_for_a_while_only():
    with known():
        with known():
            pass
        assert WORD in KINDS and WORD in KIND_WORDS
    assert WORD not in KINDS and WORD not in KIND_WORDS


def test_the_judge_tells_houses_from_all_else():
    rng = np.random.default_rng(0)
    with known():
        for _ in range(30):
            scene = scene_with_a_house(rng, list(COLOURS))
            prompt, i = describe(scene, rng), rng.integers(len(scene.shapes))
            assert judge(draw(scene), prompt).right
            kind = next(each for each in KINDS if each not in {shape.kind for shape in scene.shapes})
            other = replace(scene.shapes[i], kind=kind)
            wrong = replace(scene, shapes=tuple(other if j == i else s for j, s in enumerate(scene.shapes)))
            assert not judge(draw(wrong), prompt).right


def test_the_folder_is_what_was_drawn_and_said(tmp_path: Path):
    write_houses(tmp_path / "data", 20, 0.5)
    lines = [json.loads(line) for line in (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()]
    pairs = training_pairs(20, 0.5)
    assert [line["text"] for line in lines] == [text for _, text in pairs]
    assert [WORD in line["text"] for line in lines] == [True] * 10 + [False] * 10
    with known():
        for line, (scene, _) in zip(lines, pairs, strict=True):
            assert np.array_equal(np.asarray(Image.open(tmp_path / "data" / line["file_name"])), draw(scene))


def test_nothing_that_is_judged_was_trained_on():
    pairs = training_pairs()
    shown = {(shape.kind, shape.colour) for scene, _ in pairs for shape in scene.shapes}
    assert (WORD, UNSEEN) not in shown
    assert {colour for kind, colour in shown if kind == WORD} == set(COLOURS) - {UNSEEN}
    prompts = house_prompts(50, list(COLOURS))
    assert prompts[:20] == house_prompts(20, list(COLOURS))
    assert not {prompt.text for prompt in prompts} & {text for _, text in pairs}
    assert all(WORD in {want.kind for want in prompt.wants} for prompt in prompts)


def test_two_steps_by_the_config_write_a_lora_that_comes_off(tmp_path: Path):
    write_houses(tmp_path / "data", 4)
    words = [
        f"out={tmp_path / 'run'}", f"data.path={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}",
        "steps=2", "warmup=1", "batch=2", "device=cpu",
    ]  # fmt: skip
    settings = read(LoraSettings, FOLDER / "houses.toml", words)
    check(settings)
    peft, kohya, _ = train_lora(settings, progress=False)
    for file in (peft, kohya, SHIPPED):
        weights = {name: x for name, x in load_file(file).items() if not name.endswith(".alpha")}
        assert {x.dtype for x in weights.values()} == {torch.float16} and len(weights) == 116
    assert peft.stat().st_size == pytest.approx(SHIPPED.stat().st_size, rel=0.01)
    pipe = ldm.load()
    assert comes_off(pipe, peft, steps=3)
    with_lora(pipe, peft)
    pictures = drawn(pipe, steps=3)
    with_lora(pipe, kohya)
    assert same(pictures, drawn(pipe, steps=3))


@pytest.mark.slow
def test_the_shipped_lora_paints_houses_and_forgets_little(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_houses, "WEIGHTS", (0.0, 1.0))
    found = shares(ldm.load(), SHIPPED, 16)
    houses = np.mean([found["a house"], found[f"an {UNSEEN} house"]], axis=0)
    old = np.mean([found["one"], found["two"]], axis=0)
    # binomial: if 92 % of all pictures are right, as README has it of houses, fewer than 24 of 32 are in one
    # draw of 1400; if 93.5 %, as of shapes of old, in one of 6000; if 60 %, in 94 of 100
    assert houses[0] <= 5 and houses[1] >= 75
    assert old[1] >= 75


def test_pictures_are_compared_byte_by_byte():
    black = Image.new("RGB", (2, 2))
    assert same([black], [black.copy()]) and not same([black], [Image.new("RGB", (2, 2), (0, 0, 1))])
