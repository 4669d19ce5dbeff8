"""Every family of models on one page, each told by its difference from another."""

from dataclasses import dataclass, field

from ldm.clip.config import CLIPConfig
from ldm.schedulers import EPS, Level, Prediction, Schedule, V
from ldm.schedulers.forward import CLEAN
from ldm.schedulers.samplers import look_up
from ldm.schedulers.spacing import Spacing, leading, trailing
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig


@dataclass(frozen=True)
class Family:
    """What a set of weights does not say about itself, and how it likes to be sampled."""

    name: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: CLIPConfig = field(default_factory=CLIPConfig)
    pad: str = "<|endoftext|>"  # the token that fills prompts up
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = EPS
    size: int = 512  # pixels along a side
    sampler: str = "ddim"
    spacing: Spacing = leading
    set_alpha_to_one: bool = False  # whether DDIM ends clean, else at the level of t = 0
    steps: int = 50
    guidance: float = 7.5

    @property
    def last(self) -> Level:
        """The level at which DDIM ends."""
        return CLEAN if self.set_alpha_to_one else self.schedule.at(0)


SD1 = Family("sd1")

# The model in this package: 64×64 scenes of coloured shapes; see examples/shapes.
SHAPES = Family(
    "shapes",
    unet=UNetConfig(16, 16, (48, 96), depth=(0, 1), res_blocks=1, context_dim=96, heads=3, groups=16),
    vae=VAEConfig(channels=(32, 48, 64), res_blocks=1, latent_channels=16, groups=16, scale=1.0),
    text=CLIPConfig(width=96, layers=3, heads=3, hidden=384, vocab=771, length=32),
    schedule=Schedule(beta_end=0.02),
    prediction=V,
    spacing=trailing,
    set_alpha_to_one=True,
    size=64,
    sampler="ddpm",  # fresh noise at every step drowns the errors of earlier ones
    steps=25,
    guidance=3.0,
)

FAMILIES = {family.name: family for family in (SD1, SHAPES)}


def families() -> list[str]:
    """The names that `ldm.load(..., family=...)` knows."""
    return list(FAMILIES)


def family(name: str) -> Family:
    """A family by name. Raises InputError, with the nearest name, for one that is not known."""
    return look_up("family", name, FAMILIES)
