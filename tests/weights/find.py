"""The models in a folder, told by their headers; file names do not matter."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import ldm

SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Found:
    """A model that can be loaded, and what its headers tell."""

    path: Path
    report: ldm.Report

    @cached_property
    def sha256(self) -> str | None:
        """Of a single file; a folder has none."""
        if self.path.is_dir():
            return None
        digest, part = hashlib.sha256(), bytearray(2**22)
        with self.path.open("rb") as file:
            while size := file.readinto(part):
                digest.update(memoryview(part)[:size])
        return digest.hexdigest()


def find(folder: Path) -> tuple[list[Found], dict[str, str]]:
    """The models of a folder, and by name what is none, with the reason."""
    models, others = [], {}
    for path in candidates(folder):
        try:
            report = ldm.inspect(path)
            problem = "; ".join(report.reasons) if report.family is None else report.problems
        except ldm.LdmError as error:
            problem = str(error)
        if problem:
            others[str(path.relative_to(folder))] = problem
        else:
            models.append(Found(path, report))
    return models, others


def candidates(folder: Path) -> Iterator[Path]:
    """Files of weights and folders of models, here and one level down."""
    for path in sorted(folder.iterdir()):
        if is_candidate(path):
            yield path
        elif path.is_dir():
            yield from filter(is_candidate, sorted(path.iterdir()))


def is_candidate(path: Path) -> bool:
    """Whether it may be a model, by its kind of file."""
    return (path / "model_index.json").is_file() if path.is_dir() else path.suffix in SUFFIXES


def check_folder(given: str, marks: str) -> None:
    """Raises pytest.UsageError if `--weights` was given with nothing to find or to run."""
    folder = Path(given).expanduser()
    if "not weights" in marks:
        raise pytest.UsageError("--weights=DIR is for the tests marked weights; add -m weights")
    if not folder.is_dir():
        raise pytest.UsageError(f"--weights={given} is not a folder; give one with official files")
    if not any(candidates(folder)):
        raise pytest.UsageError(
            f"--weights={given} has neither {' nor '.join(SUFFIXES)} nor a folder with model_index.json, "
            "here or one level down; give a folder with official files"
        )
