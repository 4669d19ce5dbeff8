"""Scenes with houses as a folder of images with captions, as `ldm train` reads them.

python examples/lora/write_houses.py FOLDER
"""

import json
import sys
from pathlib import Path

from house import NUMBER, SHARE, known, training_pairs
from PIL import Image

from ldm import checks
from ldm.evaluation.shapes.world import draw

sys.path.append(str(Path(__file__).resolve().parent.parent / "shapes"))

from door import MOST, new_folder, parser, told


def write_houses(folder: Path, number: int = NUMBER, share: float = SHARE) -> None:
    """Write training scenes, 64 x 64 PNGs, and metadata.jsonl; always the same.

    Raises InputError; FileExistsError, which is one too here, for a folder that is there already.
    """
    checks.whole("number", number, MOST)
    checks.number("share", share, 0, 1)
    with (
        known(),
        new_folder(folder) as new,
        (new / "metadata.jsonl").open("x", encoding="utf-8") as metadata,
    ):
        for i, (scene, text) in enumerate(training_pairs(number, share)):
            name = f"{i:04}.png"
            Image.fromarray(draw(scene)).save(new / name)
            metadata.write(json.dumps({"file_name": name, "text": text}) + "\n")


@told()
def main() -> None:
    """Write the folder."""
    words = parser(__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--number", type=int, default=NUMBER, help="of scenes")
    words.add_argument("--share", type=float, default=SHARE, help="of scenes with a house")
    given = words.parse_args()
    write_houses(given.folder, given.number, given.share)


if __name__ == "__main__":
    main()
