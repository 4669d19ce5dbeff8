"""The pictures of README, by the bundled model: `python examples/make_pictures.py` writes them to docs/."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import ldm

sys.path.append(str(Path(__file__).resolve().parent / "shapes"))

from door import parser, told

DOCS = Path(__file__).resolve().parent.parent / "docs"
PROMPTS = (
    "a small green star to the left of a large red circle on a navy background",
    "a large yellow heart on a black background",
    "three small blue squares on a white background",
    "a large purple ring above a small orange arrow on a beige background",
    "a small pink crescent in the top right corner on a grey background",
    "a large cyan diamond to the right of a small red cross on a brown background",
    "two large green triangles on a white background",
    "a large purple triangle on a navy background",
)


def enlarged(image: Image.Image, times: int = 3) -> Image.Image:
    """Each pixel as a square."""
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def sheet(rows: list[list[Image.Image]], gap: int = 6) -> Image.Image:
    """Pictures of one size in rows, with white gaps."""
    w, h = rows[0][0].size
    page = Image.new("RGB", (len(rows[0]) * (w + gap) + gap, len(rows) * (h + gap) + gap), "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            page.paste(image, (gap + j * (w + gap), gap + i * (h + gap)))
    return page


def prompt_grid(pipe: ldm.Pipeline) -> Image.Image:
    """One picture of each prompt, four in a row."""
    drawn = [enlarged(image) for image in pipe(list(PROMPTS), seed=list(range(len(PROMPTS))), progress=False)]
    return sheet([drawn[:4], drawn[4:]])


def denoising_strip(pipe: ldm.Pipeline, prompt: str = PROMPTS[0], shown: int = 8) -> Image.Image:
    """Above, the latent on its way from noise; below, what the network takes it for at that moment."""
    states = []
    pipe(prompt, seed=0, progress=False, callback=lambda step, level, x, x0: states.append((x, x0)))
    chosen = [states[round(i * (len(states) - 1) / (shown - 1))] for i in range(shown)]
    rows = [[picture(pipe, pair[k]) for pair in chosen] for k in (0, 1)]
    return sheet(rows)


def tasks(pipe: ldm.Pipeline) -> Image.Image:
    """Noise taken away, pixels added, a half repainted, a side added, words found; and a way between two."""
    star, heart, squares, ring, *_ = PROMPTS
    quiet = {"progress": False}
    plain = pipe([star, heart, squares], seed=[0, 1, 2], **quiet)
    noise = np.random.default_rng(0).normal(0, 60, (64, 64, 3))
    noisy = Image.fromarray((np.asarray(plain[0]) + noise).clip(0, 255).astype("uint8"))
    small = plain[1].resize((32, 32), Image.Resampling.BOX)
    right = Image.new("L", (64, 64), 0)
    right.paste(255, (24, 0, 64, 64))
    new = "a small green star to the left of a large yellow heart on a navy background"
    with ldm.record_attention(pipe) as maps:
        drawn = pipe(ring, seed=3, **quiet)[0]
    top = [
        noisy, ldm.denoise(pipe, noisy, **quiet)[0],
        small.resize((64, 64), Image.Resampling.NEAREST), ldm.upscale(pipe, small, heart, seed=0, **quiet)[0],
        plain[0], pipe(new, image=plain[0], mask_image=right, strength=1.0, seed=4, **quiet)[0],
        drawn, maps.overlay("purple ring", layers="up"),
    ]  # fmt: skip
    way = ldm.interpolate(pipe, (star, ring), (0, 3), 8, **quiet)
    return sheet([[enlarged(image, 2) for image in row] for row in (top, list(way))])


def picture(pipe: ldm.Pipeline, latent: object) -> Image.Image:
    """A latent [1 c h w] decoded."""
    pixels = (pipe.decode(latent)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return enlarged(Image.fromarray((pixels.detach().numpy() * 255).round().astype("uint8")), 2)


@told()
def main() -> None:
    """Draw and write all."""
    parser(__doc__).parse_args()
    DOCS.mkdir(exist_ok=True)
    pipe = ldm.load()
    prompt_grid(pipe).save(DOCS / "prompt-grid.png", optimize=True)
    denoising_strip(pipe).save(DOCS / "denoising-strip.png", optimize=True)
    tasks(pipe).save(DOCS / "tasks.png", optimize=True)


if __name__ == "__main__":
    main()
