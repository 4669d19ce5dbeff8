"""What a family of models is: all that a set of weights does not say about itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.schedulers import EPS, Level, Prediction, Schedule
from ldm.schedulers.forward import CLEAN
from ldm.schedulers.spacing import Spacing, leading
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

# What the UNet sees beside the latent, to how many channels that is for a latent of c.
BESIDE: dict[str, Callable[[int], int]] = {
    "": lambda c: 0,
    "inpaint": lambda c: 1 + c,  # the mask, and what is known, as a latent
    "edit": lambda c: c,  # the picture to edit, as a latent
    "depth": lambda c: 1,  # how far away things are
    "upscale": lambda c: 3,  # a small picture with some noise
    "enlarge": lambda c: 3,  # a small picture
    "fill": lambda c: c + 1,  # what is known, as a latent, and the mask
}

# How many numbers the vector tells: original size, corner, then target size or aesthetic score.
NUMBERS = {"size": 6, "score": 5}


@dataclass(frozen=True)
class Text:
    """One of the encoders of a prompt."""

    config: CLIPConfig | BERTConfig | ClassConfig = field(default_factory=CLIPConfig)
    pad: str = "<|endoftext|>"  # the token that fills prompts up
    name: str = "text_encoder"  # in a folder

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return 1 if isinstance(self.config, ClassConfig) else self.config.length

    @property
    def pooled(self) -> int:
        """Width of the pooled text; 0 where there is none."""
        return (self.config.projection or 0) if isinstance(self.config, CLIPConfig) else 0


@dataclass(frozen=True)
class Family:
    """What a set of weights does not say about itself, and how it likes to be sampled."""

    name: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    texts: tuple[Text, ...] = (Text(),)  # none: there is no prompt
    beside: str = ""  # what the UNet sees beside the latent: a name in `BESIDE`
    vector: str = ""  # what it is told of the whole picture: "size" or "score"
    blank: bool = False  # whether a missing negative prompt is zeros, or else the empty text
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = EPS
    size: int = 512  # pixels along a side
    sampler: str = "ddim"
    spacing: Spacing = leading
    set_alpha_to_one: bool = False  # whether DDIM ends clean, else at the level of t = 0
    steps: int = 50
    guidance: float = 7.5
    strength: float = 0.8  # of image to image
    averaged: bool = False  # whether the moving average of the UNet's weights is what is sampled with

    @property
    def unit(self) -> int:
        """Pixels of which the sides of an image are multiples: a residual block cannot halve an odd size."""
        halvings = len(self.unet.channels) - 1 if self.unet.res_sampling else 0
        return self.vae.factor * 2**halvings

    @property
    def vector_part(self) -> int:
        """Width of the embedding of one of the numbers in the vector that the UNet hears; 0 if none fits."""
        width, odd = divmod((self.unet.vector_dim or 0) - self.texts[-1].pooled, NUMBERS[self.vector])
        return 0 if odd or width < 2 or width % 2 else width

    @property
    def last(self) -> Level:
        """The level at which DDIM ends."""
        return CLEAN if self.set_alpha_to_one else self.schedule.at(0)
