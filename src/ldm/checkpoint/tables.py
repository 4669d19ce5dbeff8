"""What a single file of the CompVis code says in numbers: its schedule, and the scale of its latents."""

from dataclasses import replace

import numpy as np

from ldm.checkpoint.files import File
from ldm.errors import CheckpointError
from ldm.family import Family
from ldm.schedulers import Schedule, linear, scaled_linear

CLOSE = 1e-4  # relative; tables are float32, and some files were halved on the way


def with_tables(file: File, family: Family) -> Family:
    """A family with the `betas` and the `scale_factor` of a file, where it has them.

    Raises CheckpointError for numbers that are none of a schedule or a scale.
    """
    if "scale_factor" in file.entries:
        scale = float(file.read("scale_factor").double().reshape(-1)[0])
        if not 0 < scale < 1e4:
            raise CheckpointError(
                f"{file.path}: scale_factor is {scale}, and must be positive; get the file again"
            )
        family = replace(family, vae=replace(family.vae, scale=scale))
    if "betas" not in file.entries:
        return family
    betas = file.read("betas").double().reshape(-1).numpy()
    if len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError(f"{file.path}: betas are not between 0 and 1; get the file again")
    found = Schedule(float(betas[0]), float(betas[-1]), len(betas))
    for schedule in (family.schedule, *(replace(found, law=law) for law in (scaled_linear, linear))):
        if len(betas) == schedule.steps and np.allclose(betas, schedule.betas, rtol=CLOSE, atol=0):
            return replace(family, schedule=schedule)
    raise CheckpointError(f"{file.path}: betas follow no schedule that is known here; get another file")
