"""The rooms of the house and who looks into whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ldm

SOURCE = Path(ldm.__file__).parent
# room -> the rooms it may import from; what is not written is forbidden
MAY = {
    "errors": set(),
    "checks": {"errors"},
    "circle": set(),
    "tiles": set(),
    "noise": {"circle"},
    "once": set(),
    "methods": {"errors"},
    "attention": {"errors", "once"},
    "layers": {"attention", "once"},
    "reading": {"errors"},
    "layouts": {"checks", "errors", "reading"},
    "image": {"checks", "errors", "layouts", "reading"},
    "devices": {"errors"},
    "ranks": {"devices", "errors"},
    "schedulers": {"checks", "errors"},
    "oracle": {"checks", "errors", "schedulers"},
    "vae": {"attention", "layers"},
    "unet": {"attention", "layers", "errors", "once"},
    "clip": {"attention", "layers", "checks", "errors"},
    "family": {"clip.config", "unet.config", "vae.config", "schedulers"},
    "families": {"clip.config", "unet.config", "vae.config", "family", "schedulers"},
    "conditioning": {"circle", "clip", "errors", "family", "unet.embeddings"},
    "prompts": {"checks", "clip", "conditioning", "errors"},
    "sight": {"family", "noise", "schedulers"},
    "denoiser": {"conditioning", "once", "schedulers", "unet"},
    "parts": {"schedulers", "errors"},
    "philox": {"checks", "errors", "noise"},
    "details": {"checks", "clip.config", "errors", "family"},
    "pictures": {"checks", "errors", "family", "image", "layouts", "reading"},
    "rows": {"checks", "clip.config", "errors", "family"},
    "request": {"checks", "details", "errors", "family", "pictures", "rows", "schedulers"},
    "parameters": {
        "checks", "clip.config", "details", "errors", "family", "image", "request", "schedulers",
    },
    "motion": {"checks", "errors", "image"},
    "walk": {"errors", "request", "schedulers"},
    "trajectory": {"checks", "image", "motion", "walk"},
    "result": {"image", "trajectory"},
    "pages": set(),
    "winograd": {"errors"},
    "fused": {"errors", "layers", "once", "unet", "winograd"},
    "packed": {"errors", "fused", "layers", "methods", "pages", "unet", "winograd"},
    "model": {"devices", "errors", "family", "packed", "pages", "unet", "vae"},
    "checkpoint": {
        "clip", "devices", "errors", "families", "family", "model", "schedulers", "unet", "vae",
    },
    "coding": {"checks", "details", "errors", "family", "model", "tiles", "walk"},
    "maps": {"checks", "coding", "errors", "image", "model", "prompts", "request", "schedulers"},
    "watching": {"attention", "errors", "maps", "model", "once", "request", "rows", "schedulers", "unet"},
    "hearing": {
        "checks", "coding", "conditioning", "denoiser", "details", "model", "noise", "pictures", "prompts",
        "request", "rows", "schedulers", "sight", "watching",
    },
    "drawing": {"noise", "philox", "request", "schedulers"},
    "adapters": {"checkpoint", "checks", "errors", "model"},
    "inversions": {"adapters", "checkpoint", "checks", "errors", "model"},
    "pipeline": {
        "coding", "conditioning", "details", "drawing", "hearing", "image", "inversions", "model",
        "packed", "parameters", "parts", "pictures", "request", "result", "schedulers", "trajectory", "walk",
    },
    "previews": {"checks", "coding", "family", "model"},
    "loading": {"checkpoint", "pipeline"},
    "enlarging": {"checks", "errors", "pictures", "pipeline", "request", "result", "rows", "schedulers"},
    "cleaning": {
        "checks", "errors", "noise", "pictures", "pipeline", "request", "result", "rows", "schedulers",
    },
    "tasks": {
        "checks", "details", "errors", "hearing", "noise", "pictures", "pipeline", "request", "result",
        "rows", "schedulers",
    },
    "evaluation": {
        "checkpoint", "checks", "devices", "errors", "loading", "pipeline", "reading", "rows",
    },
    "training": {
        "checkpoint", "checks", "clip", "coding", "conditioning", "details", "errors", "families",
        "family", "image", "inversions", "layers", "model", "noise", "pipeline", "prompts", "ranks",
        "reading", "request", "rows", "schedulers", "unet", "vae", "walk",
    },
    "commands": {
        "checkpoint", "checks", "errors", "evaluation", "image", "loading", "parameters", "pictures",
        "pipeline", "prompts", "ranks", "reading", "request", "result", "rows", "schedulers",
        "training",
    },
}  # fmt: skip


def imports(path):
    """What a module of ours imports from this library, without its first name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module]
        yield from (name.removeprefix("ldm.") for name in names if name.startswith("ldm."))


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if room_of(path) in MAY]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_looks_only_where_it_may(path):
    room = room_of(path)
    allowed = {room, *MAY[room]}
    for name in imports(path):
        assert any(name == door or name.startswith(door + ".") for door in allowed), f"{room} imports {name}"


def test_every_room_is_on_the_plan():
    doors = {"__init__", "__main__", "cli", "bundled"}
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms - doors == set(MAY)


def test_the_plan_has_no_circle():
    order = list(MAY)
    for room, others in MAY.items():
        assert all(order.index(other.split(".")[0]) < order.index(room) for other in others)


def test_nothing_inside_imports_the_door():
    for path in FILES:
        assert not {"cli", "__main__"} & set(imports(path))


@pytest.mark.parametrize("statement", ["import ldm", "import ldm.cli", "import ldm; ldm.families()"])
def test_importing_the_library_imports_no_other_implementation(statement):
    others = {"transformers", "diffusers", "triton", "k_diffusion", "accelerate", "matplotlib"}
    code = f"{statement}; import sys; print(sorted({others} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_randomness_is_drawn_in_one_place():
    """Outside noise.py (and the seeds of request.py) nothing draws random numbers."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text("utf-8")
        if room_of(path) not in ("noise", "training"):
            assert "torch.randn" not in text and "torch.rand(" not in text, path


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_are_small(path):
    assert len(path.read_text("utf-8").splitlines()) <= 250
