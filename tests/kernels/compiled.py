"""What the compiler makes of the kernels for an H200 (sm_90), told as JSON; no GPU is needed.

python -m tests.kernels.compiled     each as the shapes of the families run it; without TRITON_INTERPRET
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from ldm_kernels import groups, norms
from ldm_kernels.attention import online, resident
from ldm_kernels.tiles import power_of_two, tiles_for, two_parts
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHAPES = [  # queries, keys, width of a head
    (4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (9216, 9216, 64), (2304, 2304, 64), (4096, 4096, 64),
    (1024, 1024, 64), (4096, 77, 40), (1024, 77, 80), (256, 77, 160), (9216, 77, 64), (4096, 77, 64),
    (4096, 154, 40), (4096, 154, 64), (1024, 154, 80), (256, 154, 160), (16384, 16384, 512),
]  # fmt: skip
IMAGES = [  # pixels and channels of what is normed in 32 groups: UNets of SD 1 and SDXL, then the autoencoder
    (64, 1280), (64, 2560), (256, 640), (256, 1280), (256, 1920), (256, 2560), (1024, 320), (1024, 1280),
    (1024, 2560), (4096, 320), (4096, 640), (4096, 960), (4096, 1920), (16384, 320), (16384, 960),
    (4096, 512), (262144, 256), (1048576, 128),
]  # fmt: skip
TOKENS = (320, 640, 1280, 2560)  # channels of a token
STRIDES = [f"{x}{axis}" for x in "qkvo" for axis in "bhn"]
SM_90 = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], even: list[str], **how: int
) -> Any:
    """A kernel whose arguments are of some types, else int32. even: those that are multiples of 16."""
    names = kernel.arg_names
    place = {name: (names.index(name),) for name in names}
    types = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: types.get(name, "i32") for name in names},
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in even},
    )
    return triton.compile(source, target=SM_90, options=how)


def attention(n: int, m: int, d: int, dtype: str) -> Any:
    """The kernel for a shape; pointers and strides are multiples of 16, as the families' are."""
    tiles, (w1, w2) = tiles_for(n, m, d), two_parts(d)
    kernel = resident if tiles.resident else online
    constants = {"D": d, "W1": w1, "W2": w2, "ROWS": tiles.rows}
    if tiles.resident:
        constants |= dict(zip(("M1", "M2"), two_parts(m), strict=True)) | {"TURNS": tiles.turns}
    else:
        constants |= {"KEYS": tiles.keys}
    types = dict.fromkeys("qkvo", f"*{dtype}") | {"scale": "fp32"}
    even = [*"qkvo", *STRIDES]
    return compiled(kernel, types, constants, even, num_warps=tiles.warps, num_stages=tiles.stages)


def group_norm(pixels: int, channels: int, dtype: str) -> Iterator[tuple[str, Any]]:
    """The kernels that norm images, of whose forms those that read most."""
    width = channels // 32
    data = dict.fromkeys(("x", "y", "w", "bias", "added", "film"), f"*{dtype}") | {"eps": "fp32"}
    even = ["x", "y", "w", "bias", "added", "film", "channels", "step_b", "step_p", "step_added", "step_film"]
    flags = {"ADDED": True, "FILM": True}
    group = {"K": power_of_two(width), "WIDTH": width}
    if count := groups.warps(pixels, width):
        constants = group | flags | {"P": power_of_two(pixels), "SILU": True}
        yield "one_group", compiled(groups.one_group, data, constants, even, num_warps=count)
        return
    tile = {"C": groups.CHANNELS, "ROWS": groups.PIXELS}
    data |= {"moments": "*fp32", "factors": "*fp32"}
    parts = power_of_two(groups.cut(pixels, width).parts)
    for kernel, constants in (
        (groups.part_moments, tile),
        (groups.group_factors, group | flags | {"PARTS": parts}),
        (groups.scaled, tile | {"SILU": True}),
    ):
        own = [name for name in (*even, "moments", "factors") if name in kernel.arg_names]
        types = {name: kind for name, kind in data.items() if name in kernel.arg_names}
        yield kernel.__name__, compiled(kernel, types, constants, own)


def of_tokens(width: int, dtype: str) -> Iterator[tuple[str, Any]]:
    """The kernels for tokens `width` wide, and for sums of images of as many channels."""
    data, block = f"*{dtype}", power_of_two(width)
    types = dict.fromkeys(("x", "y", "w", "bias"), data) | {"eps": "fp32"}
    rows = {"C": block, "ROWS": max(1, norms.TOKENS // block)}
    yield "token_normed", compiled(norms.token_normed, types, rows, ["x", "y", "w", "bias", "width", "step"])
    count = {"COUNT": norms.ELEMENTS}
    yield "gated", compiled(norms.gated, dict.fromkeys("xy", data), count, ["x", "y", "count", "width"])
    types = dict.fromkeys(("x", "z", "bias", "y"), data)
    yield "summed", compiled(norms.summed, types, count, ["x", "z", "bias", "y", "count", "channels"])


def told(kernel: Any) -> dict[str, int]:
    """Registers and bytes of spills of a thread, bytes of shared memory, and tensor core instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage.stdout)}
    return found | {
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "wgmma": len(re.findall(r"wgmma\.mma_async\S*\.f32\.", kernel.asm["ptx"])),
        "wide": len(re.findall(r"(?:ld|st)\.global\S*\.v4\.b32", kernel.asm["ptx"])),
    }


def everything() -> Iterator[dict[str, Any]]:
    """Each kernel of each shape."""
    for dtype in ("fp16", "bf16"):
        for shape in SHAPES:
            yield {"kernel": "attention", "shape": shape, "dtype": dtype} | told(attention(*shape, dtype))
        for image in IMAGES:
            for name, kernel in group_norm(*image, dtype):
                yield {"kernel": name, "shape": image, "dtype": dtype} | told(kernel)
        for width in TOKENS:
            for name, kernel in of_tokens(width, dtype):
                yield {"kernel": name, "shape": (width,), "dtype": dtype} | told(kernel)


if __name__ == "__main__":
    print(json.dumps(list(everything())))
