"""A published figure against a model: how far it is off, and what that means."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ldm
from ldm.checkpoint.files import File
from tests.weights import philox
from tests.weights.find import Found
from tests.weights.table import Case, Table, in_layout

SLICES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "image[0, -3:, -3:, -1]": lambda x: x[0, -3:, -3:, -1],
    "image[0, 253:256, 253:256, -1]": lambda x: x[0, 253:256, 253:256, -1],
    "latents[0, -3:, -3:, -1]": lambda x: x[0, -3:, -3:, -1],
    "flatten()[42:46]": lambda x: x.flatten()[42:46],
}


class Trial:
    """Cases and models; the last model stays loaded."""

    def __init__(self, table: Table):
        self.table = table
        self.loaded: tuple[Path, str, ldm.Pipeline] | None = None
        self.errors: dict[tuple[str, Path | None], float] = {}

    def judge(self, case: Case, model: Found | None) -> None:
        """Pass, fail, or skip, if the model is not the release of the figure or need not be it.

        A file is a release by its hash, or because another figure of the release is met.
        """
        known = self.table.release_of(model) if model else None
        if model and known not in (None, case.release):
            pytest.skip(f"{model.path.name} is {known}, by its hash; the figure is of {case.release}")
        error = self.error(case, model)
        if error <= case.allowed:
            return
        found = f"off by {error:.2g}, where {case.allowed:.2g} is allowed ({case.test})"
        if model is None or known or self.meets_another(case, model):
            pytest.fail(f"{case.id} is {found}")
        pytest.skip(
            f"{model.path.name} is {found}: by its header it may be {case.release}, "
            "but neither its hash nor another figure says so; if it is, this is a bug"
        )

    def meets_another(self, case: Case, model: Found) -> bool:
        """Whether the model gives another figure of the same release."""
        return any(
            self.error(other, model) <= other.allowed
            for other in self.table.cases
            if other.release == case.release and other.id != case.id and not other.obstacle
            if in_layout(other, model)
        )

    def error(self, case: Case, model: Found | None) -> float:
        """The largest difference of the case's numbers from the published ones."""
        key = (case.id, model and model.path)
        if key not in self.errors:
            self.errors[key] = largest_error(case, model, self)
        return self.errors[key]

    def pipe(self, model: Found, release: str) -> ldm.Pipeline:
        """The model as what the release is of, on a GPU if there is one."""
        family = self.table.releases[release].family
        if self.loaded is None or self.loaded[:2] != (model.path, family):
            self.loaded = None  # two models may not fit into memory
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.loaded = model.path, family, ldm.load(model.path, family=family, device=device)
        return self.loaded[2]


def largest_error(case: Case, model: Found | None, trial: Trial) -> float:
    """max |ours - published|: of pixels or latents, of weights relatively, of the squares of a schedule."""
    if case.schedule:
        ends = getattr(ldm.Schedule(), case.schedule)[[0, -1]]
        return float(np.abs(ends**2 - np.square(case.values)).max())
    assert model is not None and case.release is not None
    if case.tensor:
        tensor = SLICES[case.slice](File.open(model.path).read(case.tensor).double().numpy())
        return float((np.abs(tensor - case.values) / np.abs(case.values)).max())
    images, latents = sample(trial.pipe(model, case.release), case)
    pairs = [(images, case.image)] if case.image else [(latents[step], x) for step, x in case.latents]
    return max(float(np.abs(SLICES[case.slice](x).flatten() - figure).max()) for x, figure in pairs)


def sample(pipe: ldm.Pipeline, case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image [1 H W 3] in [0, 1] that a case asks for, and the latents [1 c h w] after each step."""
    call, latents = case.call, []
    sampler = ldm.sampler(call["sampler"], spacing=call.get("spacing"))
    sampler = replace(sampler, ends_clean=True) if call.get("clean") else sampler
    first, *_ = sampler.path(pipe.family.schedule, call["steps"], pipe.family.spacing, pipe.family.last)
    side = call["size"] // pipe.family.vae.factor
    x = noise(call, (1, pipe.family.vae.latent_channels, side, side))
    result = pipe(
        call["prompt"],
        height=call["size"],
        width=call["size"],
        num_inference_steps=call["steps"],
        guidance_scale=call["guidance"],
        sampler=sampler,
        # what starts at Karras' sigma times noise starts at our sigma times it
        latents=x * first.sigma if call.get("start") == "sigma" else x,
        output_type="latent" if case.latents else "np",
        callback=lambda step, level, x, x0: latents.append(x.float().cpu().numpy()),
        progress=False,
    )
    return np.asarray(result.images), latents


def noise(call: dict, shape: tuple[int, ...]) -> Tensor:
    """The start noise [b c h w] of a case, by seed 0 of the generator that it was made with."""
    dtype = torch.float16 if call.get("half") else torch.float32
    if call["noise"] == "cpu":
        return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).float()
    if call["noise"] == "cuda":
        x = philox.randn(0, int(np.prod(shape))).reshape(shape)
    else:
        x = np.random.RandomState(0).standard_normal(shape)
    return torch.from_numpy(x).to(dtype).float()
