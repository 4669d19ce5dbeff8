"""The published figures as a table: releases, and cases that say how a figure was made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ldm
from ldm import InputError
from tests.tiny import DATA
from tests.weights.find import Found

PUBLISHED = DATA / "published.json"


@dataclass(frozen=True)
class Release:
    """Official weights; several have one header."""

    name: str
    family: str
    unet: int  # parameters
    sha256: dict[str, str] = field(default_factory=dict)  # by the name of the published file

    def fits(self, model: Found) -> bool:
        """Whether the header is that of the release, or would be if the family were asked for."""
        report = model.report
        named = report.family == self.family or any(
            f"pass family={self.family!r}" in reason for reason in report.reasons
        )
        return named and report.parts["unet"] == self.unet


@dataclass(frozen=True)
class Case:
    """One published figure and how it was made."""

    id: str
    release: str | None  # None: it needs no weights
    test: str  # file and test it is from, and the last version that has it
    why: str = ""  # it cannot be run
    call: dict[str, Any] = field(default_factory=dict)
    slice: str = ""
    tolerance: float = 0.0
    image: list[float] = field(default_factory=list)
    latents: list[tuple[int, list[float]]] = field(default_factory=list)  # after which step, counted from 0
    tensor: str = ""
    schedule: str = ""
    values: list[float] = field(default_factory=list)  # of the tensor or the schedule

    @property
    def obstacle(self) -> str:
        """Why it cannot be run, whatever files there are; empty if it can."""
        name = self.call.get("sampler")
        try:
            ldm.sampler(name or "ddim")
        except InputError:
            return self.why or f"needs the sampler {name}, which ldm does not have yet"
        return self.why

    @property
    def allowed(self) -> float:
        """The published tolerance, or where that is tighter what two machines need.

        The figures were made on GPUs: in float32 a CPU agrees to 3e-3. What was made in half precision is
        computed in float32 here, and diffusers itself allows 5e-2 between two GPUs in its later versions.
        """
        if self.schedule:
            return 2.0**-23  # alpha² was kept in float32, that is to 2^-24 where it is near 1
        if self.tensor:
            return self.tolerance
        return max(self.tolerance, 5e-2 if self.call.get("half") else 3e-3)


@dataclass(frozen=True)
class Table:
    """All of it."""

    releases: dict[str, Release]
    cases: list[Case]

    @classmethod
    def read(cls, path: Path = PUBLISHED) -> "Table":
        """The table in a file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        releases = {name: Release(name, **release) for name, release in data["releases"].items()}
        return cls(releases, [Case(**case) for case in data["cases"]])

    def release_of(self, model: Found) -> str | None:
        """The release that a file is by its hash; None if it has none that is known."""
        hashes = {sha: release.name for release in self.releases.values() for sha in release.sha256.values()}
        return hashes.get(model.sha256) if model.sha256 else None

    def like(self, model: Found) -> list[str]:
        """The releases that have the header of a model."""
        return [name for name, release in self.releases.items() if release.fits(model)]

    def pairs(self, models: list[Found]) -> list[tuple[Case, Found | None, str]]:
        """Each case with each model that may be its release, or with None and why it is skipped.

        What needs one model follows one another, so that it is loaded once.
        """
        out: list[tuple[Case, Found | None, str]] = []
        for case in self.cases:
            if case.obstacle or case.release is None:
                out.append((case, None, case.obstacle))
            elif fitting := [m for m in models if case.release in self.like(m) and in_layout(case, m)]:
                out.extend((case, model, "") for model in fitting)
            else:
                out.append((case, None, f"{case.release} is not in the folder"))
        order = {model.path: i for i, model in enumerate(models)}
        return sorted(out, key=lambda pair: self.place(pair[0], pair[1], order))

    def place(self, case: Case, model: Found | None, order: dict[Path, int]) -> tuple[int, str]:
        """By which pairs are sorted."""
        return (order[model.path], self.releases[case.release or ""].family) if model else (-1, "")


def in_layout(case: Case, model: Found) -> bool:
    """Whether a model has the tensors that a case names: those of single files."""
    return not case.tensor or model.report.layout == "original"
