"""Moving averages of a UNet's weights, which a file may have beside them or the sampling may want."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ldm.checkpoint.evidence import Shapes
from ldm.checkpoint.report import Part
from ldm.errors import CheckpointError
from ldm.family import Family


def average_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a UNet's tensors to those of their moving averages, which are without dots."""
    return {name: "model_ema." + name.removeprefix("model.").replace(".", "") for name in names}


def with_averages(path: Path, family: Family, shapes: Shapes, asked: bool | None) -> bool:
    """Whether to take the UNet's moving averages: as asked, or as the family does where a file has them."""
    there = any(key.startswith("model_ema.diffusion_model") for key in shapes)
    if asked and not there:
        raise CheckpointError(f"{path} has no moving averages, model_ema.*; leave ema out")
    return there and (family.averaged if asked is None else asked)


def averaged(unet: Part) -> Part:
    """A UNet whose weights are their moving averages."""
    names = average_names(source.key for source in unet.table.values())
    table = {ours: source._replace(key=names[source.key]) for ours, source in unet.table.items()}
    return replace(unet, table=table)
