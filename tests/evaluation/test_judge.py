"""Laws of the world of shapes, of what is said about it, and of its judge."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ldm.errors import InputError
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.captions import KIND_WORDS, OPPOSITE, Prompt, describe
from ldm.evaluation.shapes.judge import judge, look
from ldm.evaluation.shapes.scoring import make_prompts
from ldm.evaluation.shapes.world import COLOURS, HELD_OUT, KINDS, SIDE, Scene, Shape, draw, sample_scene
from tests.evaluation.scenes import some_scenes


def test_the_same_seed_draws_the_same_world():
    first, again = some_scenes(50), some_scenes(50)
    assert first == again
    assert all(np.array_equal(draw(a), draw(b)) for a, b in zip(first, again, strict=True))
    assert some_scenes(50, seed=8) != first


def test_held_out_pairs_are_never_trained_on():
    shown = {(shape.colour, shape.kind) for scene in some_scenes(5000) for shape in scene.shapes}
    assert not shown & HELD_OUT
    assert len(shown) == len(COLOURS) * len(KINDS) - len(HELD_OUT)


def test_every_held_out_prompt_has_a_held_out_pair():
    for prompt in make_prompts("held-out", 100):
        assert {(want.colour, want.kind) for want in prompt.wants} & HELD_OUT


def test_shapes_stay_inside_and_apart():
    for scene in some_scenes(1000):
        for shape in scene.shapes:
            assert shape.radius + 1 <= min(shape.x, shape.y)
            assert max(shape.x, shape.y) <= SIDE - 1 - shape.radius
        for a, b in itertools.combinations(scene.shapes, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + 2.9


def test_the_judge_passes_what_was_drawn():
    rng = np.random.default_rng(1)
    scenes = some_scenes(150)
    assert np.mean([judge(draw(scene), describe(scene, rng)).right for scene in scenes]) >= 0.99


def two_shapes() -> tuple[Scene, Prompt]:
    """A scene and a prompt that leaves nothing free."""
    rng = np.random.default_rng(3)
    while True:
        scene = sample_scene(rng, "two", [(colour, kind) for colour in COLOURS for kind in KINDS])
        prompt = describe(scene, rng)
        if prompt.relation and prompt.ground and all(want.size for want in prompt.wants):
            return scene, prompt


@pytest.mark.parametrize("aspect", ["colour", "shape", "size", "place", "ground", "count"])
def test_the_judge_fails_what_is_wrong(aspect: str):
    scene, prompt = two_shapes()
    a, b = prompt.wants
    assert judge(draw(scene), prompt).right
    wrong = {
        "colour": replace(
            prompt, wants=(replace(a, colour=next(c for c in COLOURS if c not in (a.colour, b.colour))), b)
        ),
        "shape": replace(
            prompt, wants=(replace(a, kind=next(k for k in KINDS if k not in (a.kind, b.kind))), b)
        ),
        "size": replace(prompt, wants=(replace(a, size={"small": "large", "large": "small"}[a.size]), b)),
        "place": replace(prompt, relation=OPPOSITE[prompt.relation]),
        "ground": replace(prompt, ground="white" if prompt.ground != "white" else "black"),
        "count": replace(prompt, wants=(a, b, b)),
    }[aspect]
    verdict = judge(draw(scene), wrong)
    assert not getattr(verdict, aspect) and not verdict.right


def test_the_judge_fails_swapped_colours():
    scene, _ = two_shapes()
    a, b = scene.shapes
    if a.colour == b.colour:
        b = replace(b, colour=next(c for c in COLOURS if c != a.colour))
    scene = replace(scene, shapes=(a, b))
    prompt = describe(scene, np.random.default_rng(0))
    swapped = replace(scene, shapes=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
    assert judge(draw(scene), prompt).right
    assert not judge(draw(swapped), prompt).right


def test_the_judge_places_a_shape_on_the_grid():
    shape = Shape("star", "red", 8.0, 16.0, 48.0)
    rng = np.random.default_rng(0)
    prompt = next(p for p in (describe(Scene((shape,), "navy"), rng) for _ in range(20)) if p.wants[0].cell)
    assert judge(draw(Scene((shape,), "navy")), prompt).right
    assert not judge(draw(Scene((replace(shape, x=48.0),), "navy")), prompt).place


def test_the_judge_fails_a_blur():
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3)).astype(np.float32)
    assert not judge(noise, make_prompts("one", 1)[0]).right


def test_prompts_of_every_set_are_fixed():
    for name in SETS:
        assert make_prompts(name, 5) == make_prompts(name, 8)[:5]


def test_wants_stand_in_the_order_of_the_words():
    rng = np.random.default_rng(0)
    for scene in some_scenes(200):
        prompt = describe(scene, rng)
        if len(prompt.wants) == 1:
            continue
        places = [
            [prompt.text.find(word) for word in KIND_WORDS[want.kind] if word in prompt.text]
            for want in prompt.wants
        ]
        firsts = [min(place) for place in places]
        assert len({want.kind for want in prompt.wants}) < len(prompt.wants) or firsts == sorted(firsts)


def test_the_judge_fails_what_has_no_colour():
    """A patch of opposite colours, whose median is that of the ground or near it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = rng.integers(50, 120, 3) * rng.choice([-1, 1], 3)
        chequered = np.indices((20, 20)).sum(0)[..., None] % 2
        image = np.full((SIDE, SIDE, 3), 128, np.uint8)
        image[20:40, 20:40] = 128 + np.where(chequered, one, -one)
        ground, found = look(image)
        assert ground == "grey" and all(seen.kind == "" for seen in found)
        assert not judge(image, make_prompts("one", 1)[0]).right


def test_sets_and_layouts_that_are_none_are_refused():
    with pytest.raises(InputError, match="set must be one of one, two, held-out, same, three, not 'four'"):
        make_prompts("four", 1)
    with pytest.raises(InputError, match="number must be from 1"):
        make_prompts("one", 0)
    with pytest.raises(InputError, match="layout must be 'one', 'two', 'same' or 'three', not 'held-out'"):
        sample_scene(np.random.default_rng(0), "held-out", [("red", "ring")])
