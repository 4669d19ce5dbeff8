"""What a LoRA of houses taught and what was forgotten over it: judged before, with it, and after it is off.

python examples/lora/judge_houses.py LORA.safetensors [--number 200] [--sheet before-after.png]
"""

import sys
from pathlib import Path

import numpy as np
from house import UNSEEN, house_prompts, known
from PIL import Image

import ldm
from ldm.checkpoint.files import replacing
from ldm.checks import whole
from ldm.errors import InputError
from ldm.evaluation.shapes.captions import Prompt
from ldm.evaluation.shapes.judge import judge
from ldm.evaluation.shapes.scoring import make_prompts, paint
from ldm.evaluation.shapes.world import COLOURS
from ldm.pipeline import Pipeline

sys.path.append(str(Path(__file__).resolve().parent.parent / "shapes"))

from door import MOST, parser, told

WEIGHTS = (0.0, 0.5, 1.0)  # of the LoRA
SEED = 1
SHOWN = (
    "a large red house on a white background",
    "a small pink house above a big cyan circle on a navy background",
    "two green houses on a beige background",
    "a big orange house in the middle on a black background",
    "a yellow house and a purple heart on a grey background",
    "a large blue triangle left of a small red square on brown",
)


def sets(number: int) -> dict[str, list[Prompt]]:
    """What is asked for, by name."""
    return {
        "a house": house_prompts(number, [colour for colour in COLOURS if colour != UNSEEN]),
        f"an {UNSEEN} house": house_prompts(number, [UNSEEN]),
        "one": make_prompts("one", number),
        "two": make_prompts("two", number),
    }


def share_right(pictures: list[np.ndarray], prompts: list[Prompt]) -> float:
    """The share of pictures that are right in every respect, in percent."""
    with known():
        verdicts = [judge(picture, prompt).right for picture, prompt in zip(pictures, prompts, strict=True)]
    return 100 * float(np.mean(verdicts))


def shares(pipe: Pipeline, lora: Path, number: int) -> dict[str, list[float]]:
    """The share of right pictures of each set by the weight of a LoRA, which is taken off again."""
    found = {}
    for name, prompts in sets(number).items():
        found[name] = []
        for weight in WEIGHTS:
            with_lora(pipe, lora, weight)
            found[name].append(share_right(list(paint(pipe, prompts, SEED)), prompts))
        pipe.unload_lora()
    return found


def with_lora(pipe: Pipeline, lora: Path, weight: float = 1.0) -> None:
    """Put a LoRA on in place of others; of weight 0 none."""
    pipe.unload_lora()
    if weight:
        pipe.load_lora(lora, weight)


def drawn(pipe: Pipeline, steps: int | None = None) -> list[Image.Image]:
    """Pictures of `SHOWN`. steps: of the sampler; None: the model's."""
    return pipe(list(SHOWN), seed=SEED, num_inference_steps=steps, progress=False).images


def comes_off(pipe: Pipeline, lora: Path, steps: int | None = None) -> bool:
    """Whether pictures after a LoRA was put on and taken off are what they were, bit for bit."""
    before = drawn(pipe, steps)
    with_lora(pipe, lora)
    changed = drawn(pipe, steps)
    pipe.unload_lora()
    return same(before, drawn(pipe, steps)) and not same(before, changed)


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    """Whether two rows of pictures are equal in every byte."""
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def sheet(pipe: Pipeline, lora: Path) -> Image.Image:
    """Pictures of `SHOWN` without the LoRA, with half of it and with all of it, row by row."""
    rows = []
    for weight in WEIGHTS:
        with_lora(pipe, lora, weight)
        rows.append(np.concatenate([np.asarray(picture) for picture in drawn(pipe)], axis=1))
    pipe.unload_lora()
    return Image.fromarray(np.concatenate(rows))


def check_place(file: Path) -> None:
    """Raises InputError, before anything is drawn, for a sheet that could not be written."""
    if file.suffix.lower() != ".png" or file.is_dir() or not file.parent.is_dir():
        raise InputError(f"--sheet {file} must be a file .png in a folder that is there; correct it")


@told()
def main() -> None:
    """Print the table, and write the sheet."""
    words = parser(__doc__)
    words.add_argument("lora", type=Path)
    words.add_argument("--number", type=int, default=200, help="of prompts of each set")
    words.add_argument("--sheet", type=Path, help="where to write pictures, a .png")
    args = words.parse_args()
    whole("--number", args.number, MOST)
    if args.sheet:
        check_place(args.sheet)
    pipe = ldm.load()
    with_lora(pipe, args.lora)  # one that is none is told of before anything is drawn
    pipe.unload_lora()
    if args.sheet:
        drawn_sheet = sheet(pipe, args.lora)
        with replacing(args.sheet) as file:
            drawn_sheet.save(file, "PNG", optimize=True)
    print(f"taken off, every byte is as before: {comes_off(pipe, args.lora)}")
    print("| prompts | " + " | ".join(f"LoRA × {weight:g}" for weight in WEIGHTS) + " |")
    for name, right in shares(pipe, args.lora, args.number).items():
        print(f"| {name} | " + " | ".join(f"{share:.1f}" for share in right) + " |", flush=True)


if __name__ == "__main__":
    main()
