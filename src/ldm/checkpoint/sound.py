"""Whether networks of the sizes that a source has can be built, and fit together."""

from pathlib import Path

from ldm.checkpoint.report import Report
from ldm.clip.config import ClassConfig, CLIPConfig
from ldm.errors import CheckpointError
from ldm.family import Family


def check_sizes(source: Path, family: Family) -> None:
    """Raises CheckpointError for sizes of which no network can be built."""
    unet, vae = family.unet, family.vae
    texts = [text.config for text in family.texts if not isinstance(text.config, ClassConfig)]
    splits = [("UNet", width, unet.groups, "groups") for width in unet.channels]
    splits += [
        ("UNet", w, unet.heads or unet.head_dim or 1, "heads")
        for w, depth in zip(unet.channels, unet.depth, strict=True)
        if depth
    ]
    splits += [("autoencoder", width, vae.groups, "groups") for width in vae.channels]
    splits += [
        ("text encoder", text.width, text.heads, "heads") for text in texts if isinstance(text, CLIPConfig)
    ]
    for network, width, pieces, what in splits:
        if not width or width % pieces:
            raise CheckpointError(
                f"{source}: {width} channels of the {network} cannot be split into {pieces} {what}; "
                "correct its config, or get the model again"
            )
    if not (unet.res_blocks and vae.res_blocks and unet.mid_depth and all(text.layers for text in texts)):
        raise CheckpointError(
            f"{source}: a network has no blocks at all; the file is not complete, get it again"
        )


def check_hearing(report: Report, family: Family) -> None:
    """Raises CheckpointError where networks, all of them complete, do not fit together."""
    if report.problems:
        return
    hears, says = family.unet.context_dim or 0, sum(text.config.width for text in family.texts)
    if hears != says:
        raise CheckpointError(
            f"{report.source}: the UNet hears tokens {hears} wide, but the text encoder's are {says}; "
            "get both from one model"
        )
    if family.vector and not family.vector_part:
        raise CheckpointError(
            f"{report.source}: the UNet hears a vector {family.unet.vector_dim} wide, which is not that of "
            "the pooled text and some numbers; get both networks from one model"
        )
