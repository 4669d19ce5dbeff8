"""What the compiler makes of the attention kernels for an H200 (sm_90), told as JSON; no GPU is needed.

python -m tests.kernels.compiled     each as the shapes of the families run it; without TRITON_INTERPRET
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from ldm_kernels.attention import online, resident
from ldm_kernels.tiles import tiles_for, two_parts
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHAPES = [  # queries, keys, width of a head
    (4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (9216, 9216, 64), (2304, 2304, 64), (4096, 4096, 64),
    (1024, 1024, 64), (4096, 77, 40), (1024, 77, 80), (256, 77, 160), (9216, 77, 64), (4096, 77, 64),
    (16384, 16384, 512),
]  # fmt: skip
STRIDES = [f"{x}{axis}" for x in "qkvo" for axis in "bhn"]
SM_90 = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def built(n: int, m: int, d: int, dtype: str) -> Any:
    """The kernel for a shape, compiled; pointers and strides are multiples of 16, as the families' are."""
    tiles, (w1, w2) = tiles_for(n, m, d), two_parts(d)
    kernel = resident if tiles.resident else online
    constants = {"D": d, "W1": w1, "W2": w2, "ROWS": tiles.rows}
    if tiles.resident:
        constants |= dict(zip(("M1", "M2"), two_parts(m), strict=True)) | {"TURNS": tiles.turns}
    else:
        constants |= {"KEYS": tiles.keys}
    types = dict.fromkeys("qkvo", f"*{dtype}") | {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    place = {name: (names.index(name),) for name in names}
    source = ASTSource(
        kernel,
        {name: types.get(name, "i32") for name in names},
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in [*"qkvo", *STRIDES]},
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return triton.compile(source, target=SM_90, options=options)


def told(kernel: Any) -> dict[str, int]:
    """Registers and bytes of spills of a thread, bytes of shared memory, and tensor core instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage.stdout)}
    return found | {
        "shared": kernel.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async\S*\.f32\.", kernel.asm["ptx"])),
    }


if __name__ == "__main__":
    print(json.dumps([
        {"shape": shape, "dtype": dtype} | told(built(*shape, dtype))
        for shape in SHAPES for dtype in ("fp16", "bf16")
    ]))  # fmt: skip
