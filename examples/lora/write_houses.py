"""Scenes with houses as a folder of images with captions, as `ldm train` reads them.

python examples/lora/write_houses.py FOLDER
"""

import argparse
import json
from pathlib import Path

from house import NUMBER, SHARE, known, training_pairs
from PIL import Image

from ldm.evaluation.shapes.world import draw


def write_houses(folder: Path, number: int = NUMBER, share: float = SHARE) -> None:
    """Write training scenes, 64 x 64 PNGs, and metadata.jsonl; always the same.

    Raises FileExistsError for a folder that is there already.
    """
    folder.mkdir(parents=True)
    with known(), (folder / "metadata.jsonl").open("x", encoding="utf-8") as metadata:
        for i, (scene, text) in enumerate(training_pairs(number, share)):
            name = f"{i:04}.png"
            Image.fromarray(draw(scene)).save(folder / name)
            metadata.write(json.dumps({"file_name": name, "text": text}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=NUMBER, help="of scenes")
    parser.add_argument("--share", type=float, default=SHARE, help="of scenes with a house")
    args = parser.parse_args()
    write_houses(args.folder, args.number, args.share)
