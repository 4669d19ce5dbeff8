"""What all tests share: small models, made once."""

import os
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: no GPU is needed

import pytest
import torch
from hypothesis import settings

import ldm
from tests import tiny
from tests.weights.find import check_folder

settings.register_profile("ldm", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ldm")


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, torch.get_num_threads() // WORKERS)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Small tensors take longer on several threads than on one; the slow tests have large ones."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("slow") else 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    # before it reads this, pytest takes the DIR of "--weights DIR" for tests; "--weights=DIR" it does not
    parser.addoption("--weights", metavar="DIR", help="a folder of official files, for pytest -m weights")


def pytest_configure(config: pytest.Config) -> None:
    if (folder := config.getoption("--weights")) is not None:
        check_folder(folder, config.option.markexpr)


@pytest.fixture(scope="session")
def pipe() -> ldm.Pipeline:
    """A small model; tests must leave it as it is."""
    return tiny.make()


@pytest.fixture(scope="session")
def bare_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with OpenAI's vocabulary in one file; the tensors alone tell all about it."""
    path = tmp_path_factory.mktemp("bare") / "bare.safetensors"
    merges = ldm.clip.Tokenizer.openai().merges
    ldm.save(tiny.make(tiny.BARE, merges=merges), path)
    return path


@pytest.fixture(scope="session")
def file(pipe: ldm.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as one file."""
    path = tmp_path_factory.mktemp("file") / "tiny.safetensors"
    ldm.save(pipe, path)
    return path


@pytest.fixture(scope="session")
def folder(pipe: ldm.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as a folder."""
    path = tmp_path_factory.mktemp("folder") / "tiny"
    ldm.save(pipe, path, layout="diffusers")
    return path
