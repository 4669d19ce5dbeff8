"""Scenes as a folder of images with captions, as `ldm.training` reads them.

python examples/shapes/export_images.py FOLDER --number 1000
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.evaluation.shapes.captions import describe
from ldm.evaluation.shapes.world import draw, training_scenes


def export_images(folder: Path, number: int, seed: int = 0) -> None:
    """Write `number` training scenes, 64 x 64 PNGs, and metadata.jsonl; the same for the same seed.

    Raises FileExistsError for a folder that is there already.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)  # of the words
    with (folder / "metadata.jsonl").open("x", encoding="utf-8") as metadata:
        for i, scene in enumerate(islice(training_scenes(seed), number)):
            name = f"{i:06}.png"
            Image.fromarray(draw(scene)).save(folder / name)
            metadata.write(json.dumps({"file_name": name, "text": describe(scene, rng).text}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=1000, help="of scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    export_images(args.folder, args.number, args.seed)
