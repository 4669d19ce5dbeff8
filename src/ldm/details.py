"""What a call may say besides, or only some families are told: sizes, scores, how guidance is tempered."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

from ldm.checks import number, one_of, shown, whole
from ldm.clip.config import ClassConfig, CLIPConfig
from ldm.errors import InputError
from ldm.family import Family

MOST_PIXELS = 100_000  # along a side of a picture that is only spoken of
NOISES = ("torch", "philox")
MOST_GUIDANCE = 1_000_000
MOST_SKIP = 1000
MOST_TILE, LEAST_TILE = 8192, 8  # pixels; latent pixels
MOST_NOISE = 350  # the noisiest small picture that the x4 upscaler was trained with


@dataclass(frozen=True)
class Details:
    """Those of one call. Sizes are (height, width)."""

    original_size: tuple[int, int] = (0, 0)  # SDXL: of the picture before it was cropped
    crops_coords_top_left: tuple[int, int] = (0, 0)  # SDXL: its corner
    target_size: tuple[int, int] = (0, 0)  # SDXL: of what is asked for
    aesthetic_score: float = 6.0  # SDXL's refiner
    negative_aesthetic_score: float = 2.5
    noise_level: int = 20  # x4 upscaler: of the noise on the small picture, 0 to 350
    image_guidance_scale: float = 1.5  # InstructPix2Pix: how much the picture to edit counts
    guidance_rescale: float = 0.0  # how much of the spread that guidance adds is taken back, 0 to 1
    guidance_interval: tuple[float, float] = (0.0, inf)  # of sigma / alpha; there is no guidance outside
    dynamic_threshold: float = 1.0  # share of the values that may not be surpassed by guidance; 1: no limit
    # who draws it: torch's generator on the CPU, or "philox", as on CUDA; Brownian motion is always torch's
    noise: str = "torch"
    prompt_weights: bool = False  # whether (red:1.3) is a word with a weight, or a text like any other
    clip_skip: int = 0  # CLIP's last layers left out, besides the one that SD 2 and SDXL never hear
    tile: int = 0  # side in pixels of the squares that are encoded and decoded one by one; 0: all at once
    denoising_start: float = 0.0  # the part of the path to follow
    denoising_end: float = 1.0

    @classmethod
    def of(cls, height: int, width: int) -> "Details":
        """Those of a whole picture of a size, where nothing else is said."""
        return cls(original_size=(height, width), target_size=(height, width))

    def numbers(self, kind: str, negative: bool = False) -> tuple[float, ...]:
        """What the vector of a family tells; kind: `family.vector`."""
        known = (*self.original_size, *self.crops_coords_top_left)
        score = self.negative_aesthetic_score if negative else self.aesthetic_score
        return (*known, *self.target_size) if kind == "size" else (*known, score)


TAKES = {  # an argument, to whether a family takes it
    "original_size": lambda family: family.vector != "",
    "crops_coords_top_left": lambda family: family.vector != "",
    "target_size": lambda family: family.vector == "size",
    "aesthetic_score": lambda family: family.vector == "score",
    "negative_aesthetic_score": lambda family: family.vector == "score",
    "noise_level": lambda family: family.beside == "upscale",
    "image_guidance_scale": lambda family: family.beside == "edit",
    "guidance_rescale": lambda family: bool(family.texts),
    "guidance_interval": lambda family: bool(family.texts),
    "dynamic_threshold": lambda family: bool(family.texts),
    "prompt_weights": lambda family: any(not isinstance(text.config, ClassConfig) for text in family.texts),
    "clip_skip": lambda family: any(isinstance(text.config, CLIPConfig) for text in family.texts),
    "tile": lambda family: True,
    "noise": lambda family: True,
    "denoising_start": lambda family: True,
    "denoising_end": lambda family: True,
}
NAMES = tuple(field.name for field in fields(Details))


def read_details(family: Family, height: int, width: int, given: dict[str, Any]) -> Details:
    """The details of a call; what is not given, or None, is the default. Raises InputError."""
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if not TAKES[name](family):
            raise InputError(f"{family.name} does not take {name}; leave it out")
    plain = Details.of(height, width)
    read = {name: READS.get(name, plain_number)(name, value) for name, value in given.items()}
    found = replace(plain, **read)
    check_skip(family, found.clip_skip)
    tiling(family, found.tile)
    if found.denoising_start >= found.denoising_end:
        raise InputError(
            f"denoising_start {found.denoising_start} is not before denoising_end {found.denoising_end}"
        )
    return found


def check_skip(family: Family, skip: int) -> None:
    """Raises InputError where no layer of a text encoder would be left."""
    layers = [
        text.config.layers - text.config.skip for text in family.texts if isinstance(text.config, CLIPConfig)
    ]
    if layers and skip >= min(layers):
        raise InputError(f"clip_skip {skip} leaves none of {min(layers)} layers; make it smaller")


def tiling(family: Family, tile: Any) -> int:
    """A tile's side in pixels that the autoencoder can take, 0 for none. Raises InputError."""
    factor, tile = family.vae.factor, whole("tile", tile, MOST_TILE, least=0)
    if tile and (tile % factor or tile < LEAST_TILE * factor):
        raise InputError(
            f"tile {tile} must be a multiple of {factor} from {LEAST_TILE * factor} up, or 0 for none"
        )
    return tile


def sides(name: str, value: Any) -> tuple[int, int]:
    """Two whole numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} must be two whole numbers, for height and width, not {shown(value)}")
    height, width = (whole(name, item, MOST_PIXELS, least=0) for item in value)
    return height, width


def interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers from 0 up, the second not below the first."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} must be two numbers, low and high, not {shown(value)}")
    low, high = (number(name, item, 0, inf) for item in value)
    if low > high:
        raise InputError(f"{name} must be low and high, not {low} and {high}")
    return low, high


def switch(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {shown(value)}")
    return value


def share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    return number(name, value, 0, 1)


READS: dict[str, Callable[[str, Any], Any]] = {  # how an argument is read; the others are numbers
    "original_size": sides, "crops_coords_top_left": sides, "target_size": sides,
    "noise_level": lambda name, value: whole(name, value, MOST_NOISE, least=0),
    "clip_skip": lambda name, value: whole(name, value, MOST_SKIP, least=0),
    "tile": lambda name, value: whole(name, value, MOST_TILE, least=0),
    "guidance_rescale": share, "guidance_interval": interval, "dynamic_threshold": share,
    "noise": lambda name, value: one_of(name, value, NOISES),
    "prompt_weights": switch, "denoising_start": share, "denoising_end": share,
}  # fmt: skip


def plain_number(name: str, value: Any) -> float:
    """A number of any sensible size."""
    return number(name, value, -MOST_GUIDANCE, MOST_GUIDANCE)
