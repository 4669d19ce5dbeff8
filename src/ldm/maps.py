"""How much of its attention a pixel gives to each word of a prompt, as numbers and as pictures.

    map of a phrase = Σ over its tokens of  mean over steps, layers and heads of  softmax(q kᵀ / √d)

each layer's brought to the size of the image (DAAM: Tang et al. 2022).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.checks import one_of, shown, texts, whole
from ldm.coding import decode
from ldm.errors import InputError
from ldm.image import grid, png_bytes, to_numpy, to_pil, to_unit
from ldm.model import Model
from ldm.prompts import Words, in_chunks, pieces_of, spelled
from ldm.request import Request
from ldm.schedulers import Level

STRIP = 16  # pixels of a caption
LEGIBLE, MOST = 160, 320  # pixels that a picture with a caption is wide, at least and at most


class Said(NamedTuple):
    """What a prompt says, token by token."""

    ids: list[int]
    columns: list[int]  # where in the context they stand
    words: list[tuple[str, list[int]]]  # in order, and which tokens each is

    @classmethod
    def of(cls, prompt: str, tokenizer: Words, weights: bool) -> "Said":
        """As the text encoder is told it."""
        rows = in_chunks(tokenizer, prompt, weights)
        columns = [i * tokenizer.length + 1 + j for i, row in enumerate(rows) for j in range(len(row))]
        words: list[tuple[str, list[int]]] = []
        at = 0
        for piece in (piece for piece, weight in pieces_of(prompt, weights) if weight >= 0):
            for word, count in spelled(piece, tokenizer):
                words.append((word, list(range(at, at + count))))
                at += count
        return cls([token for row in rows for token, _ in row], columns, words)

    def find(self, ids: Sequence[int]) -> list[int]:
        """Which tokens are part of such a sequence, wherever it stands."""
        n = len(ids)
        starts = [i for i in range(len(self.ids) - n + 1) if self.ids[i : i + n] == list(ids)]
        return sorted({i + j for i in starts for j in range(n)})


class Kept(NamedTuple):
    """The attention in the layers of one part of the UNet that are of one size, for one image."""

    part: str  # "down", "mid" or "up"
    layers: int
    total: Tensor  # over the layers, of the mean over heads: [h' w' m], m tokens of the prompt


class Look(NamedTuple):
    """What the network did when it was asked once, for one image."""

    level: Level
    x0: Tensor  # [c h w]
    kept: list[Kept]


class Recorded(NamedTuple):
    """One call of a pipeline; image i has row i of both lists."""

    request: Request
    said: list[Said]
    looks: list[list[Look]]


class Maps:
    """Attention maps of the last call of a pipeline (see `record_attention`). Draws itself in a notebook.

    phrase  a word, or several that stand together in a prompt; shares of tokens and of places are added
    row     an image
    step    a look of the network, from 0 to `len(maps.levels) - 1`, of which some solvers, such as Heun's,
            have two between two levels; None: the mean of all
    layers  those of the UNet's way "down", of its "mid" or of its way "up"; "all": the mean of them. In the
            model of this package it is on the way up that a thing attends to its word
    All raises InputError for a phrase, row, step or layers that are not there, and before the first call.
    """

    def __init__(self, model: Model):
        self.model = model
        self.recorded: Recorded | None = None

    @property
    def heard(self) -> Recorded | None:
        """The last call, if it got as far as a look for every image."""
        return self.recorded if self.recorded and all(self.recorded.looks) else None

    @property
    def last(self) -> Recorded:
        """The same. Raises InputError if there is none."""
        if (heard := self.heard) is None:
            raise InputError("no attention is recorded yet; call the pipeline, then ask for maps")
        return heard

    @property
    def levels(self) -> list[Level]:
        """The noise level of each step."""
        return [look.level for look in min(self.last.looks, key=len)]

    def words(self, row: int = 0) -> list[str]:
        """The words of an image's prompt in order, marks among them."""
        return [word for word, _ in self.last.said[self.known(row)].words]

    def __getitem__(self, phrase: str) -> Tensor:
        """The share of its attention that each pixel gives to a phrase, [b H W]: `of(phrase)`."""
        return self.of(phrase)

    def of(self, phrase: str, step: int | None = None, layers: str = "all") -> Tensor:
        """The same at one step and of some layers: float32 [b H W] from 0 to 1, interpolated linearly.

        An image whose prompt has not the phrase, while another's has, gives nothing to it: 0.
        """
        found = self.find(phrase)
        return torch.stack([self.share(row, tokens, step, layers) for row, tokens in enumerate(found)])

    def overlay(self, phrase: str, row: int = 0, step: int | None = None, layers: str = "all") -> Image.Image:
        """A map over the image as the network saw it at that step, or at last: x0, decoded.

        The colours go from the map's least, dark, by red and yellow to its most, white.
        """
        tokens = self.find(phrase)[self.known(row)]
        if not tokens:
            raise self.missing(phrase, [row])
        return pil(heated(self.picture(row, step), self.share(row, tokens, step, layers)))

    def sheet(self, row: int = 0, step: int | None = None, layers: str = "all") -> Image.Image:
        """The image as the network saw it, and the overlay of each word of its prompt, with captions."""
        places: dict[str, list[int]] = defaultdict(list)
        for word, tokens in self.last.said[self.known(row)].words:
            places[word] += tokens
        picture = self.picture(row, step)
        sheets = [captioned(pil(picture), "x0")]
        for word, tokens in places.items():
            heat = heated(picture, self.share(row, tokens, step, layers))
            sheets.append(captioned(pil(heat), word))
        return grid(sheets)

    def _repr_png_(self) -> bytes | None:
        return None if self.heard is None else png_bytes(self.sheet())

    def __repr__(self) -> str:
        if (heard := self.heard) is None:
            return "Maps(of no call yet)"
        return f"Maps({len(heard.said)} images, {len(self.levels)} steps)"

    def find(self, phrase: str) -> list[list[int]]:
        """Which tokens of each image's prompt are of a phrase. Raises InputError if none is."""
        (phrase,) = texts("phrase", [phrase])
        ids = self.model.tokenizers[0].encode(phrase)
        found = [said.find(ids) for said in self.last.said]
        if not any(found):
            raise self.missing(phrase, range(len(found)))
        return found

    def share(self, row: int, tokens: Sequence[int], step: int | None, layers: str) -> Tensor:
        """What an image's pixels give to some tokens of its prompt. [H W]"""
        looks, request = self.last.looks[row], self.last.request
        if step is not None:
            looks = [looks[self.known_step(step)]]
        one_of("layers", layers, ("all", *dict.fromkeys(kept.part for kept in looks[0].kept)))
        chosen = [kept for look in looks for kept in look.kept if layers in ("all", kept.part)]
        sums: dict[tuple[int, ...], Tensor] = {}
        for kept in chosen:
            total = kept.total[..., tokens].sum(dim=-1)
            sums[total.shape] = sums[total.shape] + total if total.shape in sums else total
        size = (request.height, request.width)
        large = [
            F.interpolate(rearrange(total, "h w -> 1 1 h w"), size=size, mode="bilinear")
            for total in sums.values()
        ]
        return rearrange(torch.cat(large), "n 1 h w -> n h w").sum(dim=0) / sum(k.layers for k in chosen)

    @torch.no_grad()
    def picture(self, row: int, step: int | None) -> Tensor:
        """What the network took an image for, float32 [3 H W] in [0, 1]."""
        look = self.last.looks[row][-1 if step is None else self.known_step(step)]
        (image,) = to_unit(decode(self.model, look.x0[None], self.last.request.details.tile))
        return image.cpu()

    def known(self, row: int) -> int:
        """An image that there is. Raises InputError."""
        return whole("row", row, len(self.last.said) - 1, least=0)

    def known_step(self, step: int) -> int:
        """A step that there is. Raises InputError."""
        return whole("step", step, len(self.levels) - 1, least=0)

    def missing(self, phrase: str, rows: Sequence[int]) -> InputError:
        """The error that no prompt of some images has a phrase."""
        words = dict.fromkeys(word for row in rows for word, _ in self.last.said[row].words)
        return InputError(
            f"{shown(phrase)} is not in the prompt; ask for words that stand together in it, of "
            + (", ".join(words) or "which it has none")
        )


def heated(image: Tensor, share: Tensor) -> Tensor:
    """A grey image under a glow: (grey + 2 glow) / 3, both [3 H W] in [0, 1]; share [H W] of any range.

    glow = clamp(3 heat - (0, 1, 2)), where heat goes from share's least, 0, to its most, 1.
    """
    heat = (share - share.amin()) / (share.amax() - share.amin()).clamp(min=1e-12)
    glow = (3 * heat - torch.arange(3, device="cpu").reshape(3, 1, 1)).clamp(0, 1)
    return (image.mean(dim=0, keepdim=True) + 2 * glow) / 3


def pil(image: Tensor) -> Image.Image:
    """[3 H W] in [0, 1] as a PIL image."""
    return to_pil(to_numpy(image[None]), [{}])[0]


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """A picture, enlarged by a whole number or made smaller, under a line of text."""
    small = picture.copy()
    small.thumbnail((MOST, MOST))
    times = -(-LEGIBLE // small.width)
    w, h = (times * side for side in small.size)
    sheet = Image.new("RGB", (w, h + STRIP), "white")
    sheet.paste(small.resize((w, h), Image.Resampling.NEAREST), (0, STRIP))
    known = text.encode("latin-1", "replace").decode("latin-1")  # PIL's own font may know no more
    ImageDraw.Draw(sheet).text((3, 2), known, fill="black")
    return sheet
