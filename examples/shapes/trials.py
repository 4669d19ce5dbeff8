"""What `ldm` does with pictures, judged on scenes that the bundled model was not trained on.

python examples/shapes/trials.py [TRIAL …] [--number 50]
"""

import json
from collections.abc import Iterator

import numpy as np
from door import MOST, parser, told
from PIL import Image
from repaint import cases

import ldm
from ldm.checks import one_of, whole
from ldm.evaluation.shapes.captions import Prompt, Want, describe
from ldm.evaluation.shapes.judge import judge
from ldm.evaluation.shapes.world import SIDE, draw, pairs_seen, sample_scene
from ldm.pipeline import Pipeline

QUIET = {"progress": False}
NOISES = (2, 5, 10, 25, 50, 100)  # standard deviations, of levels from 0 to 255


def scenes(number: int, seed: int = 3000) -> Iterator[tuple[np.ndarray, Prompt]]:
    """Pictures of one shape or two, and prompts that are true of them."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        scene = sample_scene(rng, ("one", "two")[i % 2], pairs_seen())
        yield draw(scene), describe(scene, rng)


def psnr(a: np.ndarray | Image.Image, b: np.ndarray) -> float:
    """Peak signal over noise of bytes, in decibels."""
    return float(10 * np.log10(255**2 / np.mean((np.asarray(a, float) - b) ** 2)))


def outpainting(pipe: Pipeline, number: int) -> dict[str, float]:
    """Half of a scene with another half drawn beside it: kept, and all right, in percent."""
    kept = right = 0
    for i, (picture, mask, prompt) in enumerate(cases(number)):
        known = picture[:, ~mask[0]]
        side = "left" if mask[0, 0] else "right"
        drawn = ldm.outpaint(
            pipe, Image.fromarray(known), prompt.text, seed=i, **{side: int(mask[0].sum())}, **QUIET
        )
        after = np.asarray(drawn[0])
        kept += np.array_equal(after[:, ~mask[0]], known)
        right += judge(after, prompt).right
    return {"kept": 100 * kept / number, "right": 100 * right / number}


def upscaling(pipe: Pipeline, number: int) -> dict[str, float]:
    """A scene at half its size, enlarged: dB of bicubic and of ours, percent of cases where ours is more."""
    ours, bicubic = [], []
    for i, (picture, prompt) in enumerate(scenes(number)):
        small = Image.fromarray(picture).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
        bicubic.append(psnr(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), picture))
        ours.append(psnr(ldm.upscale(pipe, small, prompt.text, seed=i, **QUIET)[0], picture))
    return {"bicubic": mean(bicubic), "ours": mean(ours), "better": better(ours, bicubic)}


def denoising(pipe: Pipeline, number: int) -> dict[str, dict[str, float]]:
    """Scenes with noise of each level: dB before and after, the least gain, and the level measured."""
    found = {}
    for level in NOISES:
        rows = []
        for i, (picture, prompt) in enumerate(scenes(number)):
            noise = np.random.default_rng(i).normal(0, level, picture.shape)
            noisy = np.clip(picture + noise, 0, 255).round().astype(np.uint8)
            clean = ldm.denoise(pipe, Image.fromarray(noisy), prompt.text, **QUIET)
            rows.append(
                (psnr(noisy, picture), psnr(clean[0], picture), clean.parameters["noise_std"] * 127.5)
            )
        before, after, measured = np.array(rows).T
        found[str(level)] = {
            "noisy": mean(before), "clean": mean(after), "least gain": float((after - before).min()),
            "measured": mean(measured),
        }  # fmt: skip
    return found


def enlarging(pipe: Pipeline, number: int) -> dict[str, float]:
    """Scenes half as large again as any in training, in percent right: drawn in two passes, and at once."""
    twice = once = 0
    for i, (_, prompt) in enumerate(scenes(number)):
        large = ldm.hires(pipe, prompt.text, seed=i, scale=1.5, strength=0.1, sampler="ddim", **QUIET)
        at_once = pipe(prompt.text, seed=i, height=96, width=96, sampler="ddim", **QUIET)
        twice += judge(seen(large[0]), prompt).right
        once += judge(seen(at_once[0]), prompt).right
    return {"two passes": 100 * twice / number, "at once": 100 * once / number}


def seen(image: Image.Image) -> np.ndarray:
    """A picture at the size that the judge knows."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def interpolation(pipe: Pipeline, number: int) -> dict[str, float]:
    """Ways between prompts: percent of ends equal to the plain images, within 1 of 255, and right."""
    same = right = 0
    some = list(scenes(2 * number))
    for i, ((_, a), (_, b)) in enumerate(zip(some[::2], some[1::2], strict=True)):
        way = ldm.interpolate(pipe, (a.text, b.text), (2 * i, 2 * i + 1), 3, **QUIET)
        for frame, prompt, seed in ((way[0], a, 2 * i), (way[2], b, 2 * i + 1)):
            plain = np.asarray(pipe(prompt.text, seed=seed, **QUIET)[0], int)
            same += int(np.abs(np.asarray(frame, int) - plain).max() <= 1)
            right += judge(np.asarray(frame), prompt).right
    return {"ends equal": 50 * same / number, "ends right": 50 * right / number}


def inversion(pipe: Pipeline, number: int) -> dict[str, float]:
    """Scenes walked back to their noise and drawn again: dB, mean and least."""
    found = []
    for picture, prompt in scenes(number):
        back = ldm.invert(pipe, Image.fromarray(picture), prompt.text)
        again = pipe(prompt.text, latents=back.latents, sampler=back.sampler, guidance_scale=1, **QUIET)
        found.append(psnr(again[0], picture))
    return {"mean": mean(found), "least": min(found)}


def editing(pipe: Pipeline, number: int) -> dict[str, float]:
    """A shape of another colour by `ldm.edit`: percent right, and dB of what lies apart from it."""
    right, kept = 0, []
    rng = np.random.default_rng(4000)
    for i in range(number):
        scene = sample_scene(rng, "one", pairs_seen())
        (shape,) = scene.shapes
        colours = sorted({colour for colour, kind in pairs_seen() if kind == shape.kind} - {shape.colour})
        colour = colours[i % len(colours)]
        words = "a {} {} {} on a {} background"
        before = words.format(shape.size, shape.colour, shape.kind, scene.ground)
        after = words.format(shape.size, colour, shape.kind, scene.ground)
        picture = draw(scene)
        edited = ldm.edit(pipe, Image.fromarray(picture), before, after, rounds=10, guidance_scale=3, **QUIET)
        right += judge(
            np.asarray(edited[0]), Prompt(after, (Want(shape.kind, colour, shape.size),), None, scene.ground)
        ).right
        y, x = np.mgrid[:SIDE, :SIDE]
        apart = np.hypot(x - shape.x, y - shape.y) > 1.5 * shape.radius
        kept.append(psnr(np.asarray(edited[0])[apart], picture[apart]))
    return {"right": 100 * right / number, "kept": mean(kept)}


def varying(pipe: Pipeline, number: int) -> dict[str, float]:
    """Variations of half strength: percent that are right, and percent that are another picture."""
    right = other = 0
    for i, (_, prompt) in enumerate(scenes(number)):
        plain = np.asarray(pipe(prompt.text, seed=i, **QUIET)[0])
        (drawn,) = ldm.vary(pipe, prompt.text, i, 1, 0.5, variation_seed=9000 + i, **QUIET)
        right += judge(np.asarray(drawn), prompt).right
        other += psnr(drawn, plain) < 30
    return {"right": 100 * right / number, "other": 100 * other / number}


def drawing_over(pipe: Pipeline, number: int) -> dict[str, float]:
    """Image to image, from a scene to another one's prompt: percent right, by strength."""
    right = {}
    some = list(scenes(2 * number))
    for strength in (0.5, 0.9):
        hits = 0
        for i, ((picture, _), (_, prompt)) in enumerate(zip(some[::2], some[1::2], strict=True)):
            drawn = pipe(prompt.text, image=Image.fromarray(picture), strength=strength, seed=i, **QUIET)
            hits += judge(np.asarray(drawn[0]), prompt).right
        right[f"right at {strength}"] = 100 * hits / number
    return right


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def better(ours: list[float], theirs: list[float]) -> float:
    """How often, in percent, ours is more than theirs."""
    return 100 * float(np.mean(np.array(ours) > np.array(theirs)))


TRIALS = {
    trial.__name__: trial
    for trial in (
        *(outpainting, upscaling, denoising, enlarging, interpolation, inversion),
        *(varying, drawing_over, editing),
    )
}


@told()
def main() -> None:
    """Print what each trial found."""
    words = parser(__doc__)
    words.add_argument("--number", type=int, default=50, help="of cases of each")
    words.add_argument("trial", nargs="*", default=list(TRIALS), help=", ".join(TRIALS))
    given = words.parse_args()
    whole("--number", given.number, MOST)
    trials = [one_of("trial", name, list(TRIALS)) for name in given.trial]
    pipe = ldm.load()
    for name in trials:
        print(json.dumps({name: TRIALS[name](pipe, given.number)}))


if __name__ == "__main__":
    main()
