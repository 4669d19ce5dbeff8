"""Scenes as a folder of images with captions, as `ldm.training` reads them.

python examples/shapes/export_images.py FOLDER --number 1000
"""

import json
from itertools import islice
from pathlib import Path

import numpy as np
from door import MOST, new_folder, parser, told
from PIL import Image

from ldm.checks import whole
from ldm.evaluation.shapes.captions import describe
from ldm.evaluation.shapes.world import draw, training_scenes


def export_images(folder: Path, number: int, seed: int = 0) -> None:
    """Write `number` training scenes, 64 x 64 PNGs, and metadata.jsonl; the same for the same seed.

    Raises InputError; FileExistsError, which is one too here, for a folder that is there already.
    """
    whole("number", number, MOST)
    whole("seed", seed, 2**63 - 1, least=0)
    rng = np.random.default_rng(seed)  # of the words
    with new_folder(folder) as new, (new / "metadata.jsonl").open("x", encoding="utf-8") as metadata:
        for i, scene in enumerate(islice(training_scenes(seed), number)):
            name = f"{i:06}.png"
            Image.fromarray(draw(scene)).save(new / name)
            metadata.write(json.dumps({"file_name": name, "text": describe(scene, rng).text}) + "\n")


@told()
def main() -> None:
    """Write the folder."""
    words = parser(__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--number", type=int, default=1000, help="of scenes")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    export_images(given.folder, given.number, given.seed)


if __name__ == "__main__":
    main()
