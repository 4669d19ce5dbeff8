"""What `ldm train` does: a diffusion model, a LoRA of one, a new word, or an autoencoder, from settings."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ldm.checkpoint.lora import NAMINGS
from ldm.checks import nearest
from ldm.errors import InputError
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.autoencoder import Autoencoding, VaeSettings
from ldm.training.autoencoder import check as check_vae
from ldm.training.autoencoding import Perceptual
from ldm.training.cache import Texts
from ldm.training.card import write_card
from ldm.training.data import Batch, as_it_is
from ldm.training.diffusion import Diffusion, changed, check_drawn, check_trainable
from ldm.training.inversion import TextualInversion, check_said, saying
from ldm.training.loop import Look, Watch
from ldm.training.lora import LoRA
from ldm.training.reconstruction import measured_scale, psnr, reconstructed, reconstruction_sheet, set_scale
from ldm.training.rows import rows_of, some_rows
from ldm.training.session import adamw, begun, check_files, family_of, followed, opened, written
from ldm.training.settings import DTYPES, DiffusionSettings, InversionSettings, LoraSettings, at_home
from ldm.training.sheets import by_time, draw, place, prompts_of, sheet_path

log = logging.getLogger("ldm")
End = Callable[[], Sequence[Path]]  # writes what a run was for


def train_diffusion(
    settings: DiffusionSettings, ranks: Ranks = Ranks(), watch: Watch | None = None, progress: bool = True
) -> list[Path]:
    """Train a diffusion model, from nothing or from a checkpoint; returns what was written at the end.

    ranks     as `ldm.ranks.joined` gives them, for several processes
    watch     as of `loop.train`; progress: whether a bar is shown
    A run whose folder has checkpoints goes on from the newest. Raises InputError, CheckpointError, and
    NumericError after too many steps without a finite gradient.
    """
    settings = at_home(settings)
    if not settings.networks:
        raise InputError("networks is empty, so nothing would be trained; give unet")
    pipe = prepared(settings, ranks)
    known = {name: each for name, each in pipe.named_networks().items() if name != "vae"}
    for name in settings.networks:
        if name not in known:
            raise InputError(f"networks has {name!r}; {nearest(name, known)}")
        known[name].requires_grad_(True)
    random = pipe.named_networks() if family_of(settings) else settings.fresh
    if stay := [name for name in random if name not in settings.networks]:
        log.warning("%s: random weights that nothing trains; is that meant?", ", ".join(stay))
    return go(settings, pipe, ranks, lambda: [written(pipe, settings, ranks)], watch, progress)


def train_lora(
    settings: LoraSettings, ranks: Ranks = Ranks(), watch: Watch | None = None, progress: bool = True
) -> list[Path]:
    """Train low-rank changes of a model and write them in the names of PEFT and of kohya; as above."""
    settings = at_home(settings)
    refuse_whole(settings)
    paths = {naming: Path(settings.out) / f"lora-{naming}.safetensors" for naming in NAMINGS}
    check_files(paths.values())
    pipe = prepared(settings, ranks)
    lora = LoRA(
        pipe, settings.rank, settings.alpha or None, targets=settings.targets, networks=settings.networks
    )

    def end() -> list[Path]:
        for naming, path in paths.items() if ranks.first else ():
            lora.save(path, naming, DTYPES[settings.saved])
        return list(paths.values())

    return go(settings, pipe, ranks, end, watch, progress)


def train_inversion(
    settings: InversionSettings, ranks: Ranks = Ranks(), watch: Watch | None = None, progress: bool = True
) -> list[Path]:
    """Train the embedding of a new word and write it in the form of diffusers; as above."""
    settings = at_home(settings)
    refuse_whole(settings)
    path = Path(settings.out) / "word.safetensors"
    check_files([path])
    pipe = prepared(settings, ranks)
    check_said(settings)
    word = TextualInversion(pipe, settings.token, settings.init or None, settings.vectors)

    def end() -> list[Path]:
        if ranks.first:
            word.save(path, dtype=DTYPES[settings.saved])
        return [path]

    return go(settings, pipe, ranks, end, watch, progress, partial(saying, settings))


def train_vae(
    settings: VaeSettings, ranks: Ranks = Ranks(), watch: Watch | None = None, progress: bool = True,
    perceptual: Perceptual | None = None,
) -> list[Path]:  # fmt: skip
    """Train an autoencoder, measure the scale of its latents, and write the model; as above.

    perceptual  a net of the caller's, instead of that of the settings: two of [b 3 H W] in [-1, 1] -> [b]
    """
    settings = at_home(settings)
    check_vae(settings)
    pipe = opened(settings, ranks)
    autoencoding = Autoencoding(pipe.vae, settings, ranks, perceptual)
    rows, sheet = rows_of(settings, pipe, ranks, latents=False), settings.sheet
    run = begun(
        autoencoding, pipe, rows, settings, ranks,
        make=lambda: adamw(autoencoding.groups(settings.rate), settings),
    )  # fmt: skip
    run.parts = autoencoding.told
    shown = pictures(settings, pipe, sheet.images) if sheet.every and sheet.images else None

    def look(step: int) -> Mapping[str, float]:
        if shown is None:
            return {}
        if ranks.first:
            place(sheet_path(settings, step), reconstruction_sheet(pipe.vae, shown[:8]))
        return {"psnr": float(psnr(shown, reconstructed(pipe.vae, shown).cpu()).mean())}

    followed(run, settings, look if sheet.every else None, watch, progress)
    if settings.scale_images and settings.train == "both":
        images = (batch.images for batch in some_rows(settings, pipe, 8, latents=False))
        set_scale(pipe, measured_scale(pipe.vae, images, settings.scale_images, settings.seed))
    paths = [written(pipe, settings, ranks)]
    return [*paths, write_card(settings, pipe, rows.images)] if ranks.first else paths


def pictures(settings: VaeSettings, pipe: Pipeline, count: int) -> Tensor:
    """The images of a sheet."""
    return next(some_rows(settings, pipe, count, settings.sheet.data, latents=False)).images


def refuse_whole(settings: DiffusionSettings) -> None:
    """Raises InputError for fsdp, which cuts whole networks, and for a model that knows nothing yet."""
    if family_of(settings) or settings.fresh:
        which = ", ".join(settings.fresh) or f"model {settings.model}"
        raise InputError(
            f"{which} would have random weights, which what is trained here would be of no use without; give "
            "a model that is trained"
        )
    if settings.spread == "fsdp":
        raise InputError(
            "spread=fsdp is for training whole networks; give spread=ddp, little is trained here"
        )


def prepared(settings: DiffusionSettings, ranks: Ranks) -> Pipeline:
    """The model that a run begins with, of which nothing is trained yet. Raises InputError."""
    check_drawn(settings)
    if family := family_of(settings):
        check_trainable(family)  # before it is made
    pipe = opened(settings, ranks)
    check_trainable(pipe.family)
    pipe.family = changed(pipe.family, settings)
    return pipe


def go(
    settings: DiffusionSettings, pipe: Pipeline, ranks: Ranks, end: End, watch: Watch | None, progress: bool,
    said: Callable[[Batch], Batch] = as_it_is,
) -> list[Path]:  # fmt: skip
    """Train those parameters of a model that require gradients, and write what the run was for.

    said  a batch with the prompts that it is to be told
    """
    joint = any(p.requires_grad for each in pipe.text_encoders for p in each.parameters())
    remembers = settings.data.cache and pipe.tokenizers and not joint
    cache = Path(settings.data.cache) / "texts"
    texts = Texts(pipe, cache, settings.chunks) if remembers else None
    diffusion = Diffusion(pipe, settings, texts)
    plain = rows_of(settings, pipe, ranks)
    rows = replace(plain, batches=lambda first: map(said, plain.batches(first)))
    run = begun(diffusion, pipe, rows, settings, ranks)
    followed(run, settings, looking(settings, pipe, diffusion, ranks, said), watch, progress)
    paths = list(end())
    if ranks.first:
        paths.append(write_card(settings, pipe, rows.images))
    return paths


def looking(
    settings: DiffusionSettings, pipe: Pipeline, diffusion: Diffusion, ranks: Ranks,
    said: Callable[[Batch], Batch],
) -> Look | None:  # fmt: skip
    """Pictures of the sheet's prompts, and the loss by time; the first rank writes."""
    sheet = settings.sheet
    if not sheet.every:
        return None
    prompts = prompts_of(pipe.family, sheet)
    shown = said(next(some_rows(settings, pipe, sheet.images, sheet.data))) if sheet.images else None
    most = max(1, settings.batch // settings.accumulate // ranks.size)  # at once, as in a step

    def look(step: int) -> Mapping[str, float]:
        if prompts:
            drawn = draw(pipe, sheet, prompts, most)
            if ranks.first:
                place(sheet_path(settings, step), drawn)
        return by_time(diffusion, shown, most) if shown is not None else {}

    return look
