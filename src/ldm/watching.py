"""Watching the UNet attend to a prompt while it draws, without a hand in it.

Beside every layer that attends to the text a hook computes softmax(q kᵀ / √d) once more, for the conditional
rows alone; what the layer itself computes, by whatever backend, stays what it is, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.errors import InputError
from ldm.maps import Kept, Look, Maps, Recorded, Said
from ldm.model import Model
from ldm.once import Once, plain
from ldm.request import Request
from ldm.rows import hears_classes
from ldm.schedulers import Level
from ldm.schedulers.solvers import Denoise
from ldm.unet import UNet
from ldm.unet.blocks import TransformerBlock

Part = tuple[list[int], Denoise]  # a denoiser, and of which images


class Asked:
    """One call of the UNet for images of these prompts and of latents of h rows and w columns.

    totals  part of the UNet and size -> over its layers, the mean attention over heads. [b h' w' m]
    """

    def __init__(self, maps: Maps, said: Sequence[Said], size: tuple[int, int]):
        self.maps, self.said = maps, said
        self.end = 1 + max((said.columns[-1] for said in said if said.columns), default=0)
        halved = [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(len(maps.model.unet.down))]
        self.sizes = {h * w: (h, w) for h, w in halved}  # by their number of pixels
        self.totals: dict[tuple[str, int], Tensor] = {}
        self.layers: dict[tuple[str, int], int] = {}

    def add(self, part: str, shares: Tensor) -> None:
        """The mean attention over heads in one more layer, [b n m]."""
        place = part, shares.shape[1]
        seen = shares[..., : self.end]  # what follows is padding
        self.totals[place] = self.totals[place] + seen if place in self.totals else seen
        self.layers[place] = self.layers.get(place, 0) + 1

    def kept(self) -> list[list[Kept]]:
        """All that was added, on the CPU, image by image."""
        out: list[list[Kept]] = [[] for _ in self.said]
        for (part, n), total in self.totals.items():
            for own, said, x in zip(out, self.said, total.cpu(), strict=True):
                image = rearrange(x[:, said.columns], "(h w) m -> h w m", h=self.sizes[n][0])
                own.append(Kept(part, self.layers[part, n], image))
        return out


# ContextVars, so that one thread is not watched by another.
_watching: ContextVar[tuple[Maps, ...]] = ContextVar("maps that record, innermost last", default=())
_asked: ContextVar[Asked | None] = ContextVar("the UNet's call that is recorded", default=None)


@contextmanager
def record_attention(pipe: Model) -> Iterator[Maps]:
    """Within the block, what the UNet attends to in the prompts of this thread's calls of a pipeline.

        with ldm.record_attention(pipe) as maps:
            result = pipe("a large red circle on a navy background")
        maps["red circle"]           # [b H W], the share of each pixel's attention; see `Maps`
        maps.overlay("red circle")   # a picture; maps.sheet() has all words

    Images are the same as without, bit for bit. Each call starts anew, also one by a task such as `ldm.edit`:
    maps are of the last. Of blended prompts the words are the first one's; under guidance the conditional
    branch alone is kept. Where blocks are nested, the innermost of a pipeline records.
    Kept on the CPU are 4 bytes for each step, token of a prompt and pixel, in each size and part of the UNet:
    of ten words in 50 steps of Stable Diffusion 1 at 512×512, 22 MB an image. On the device one image's
    attention in one layer, which a fused kernel never writes down, is there for a moment: 10 MB.
    Raises InputError on entry for a model that hears no text.
    """
    if not pipe.family.texts or hears_classes(pipe.family):
        raise InputError(f"{pipe.family.name} hears no words to attend to; record a text-to-image model")
    maps = Maps(pipe)
    hooks = [attn.register_forward_hook(partial(keep, maps, part)) for part, attn in listeners(pipe.unet)]
    token = _watching.set((*_watching.get(), maps))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        _watching.reset(token)


def watched(model: Model, request: Request, parts: Sequence[Part]) -> Sequence[Part]:
    """The denoisers of a call of a model, each of some images; recording from now on if they are watched."""
    maps = next((maps for maps in reversed(_watching.get()) if maps.model.unet is model.unet), None)
    if maps is None:
        return parts
    tokenizer, weights = model.tokenizers[0], request.details.prompt_weights
    said = [Said.of(str(prompt), tokenizer, weights) for prompt in request.prompts]
    recorded = Recorded(request, said, [[] for _ in said])
    maps.recorded = recorded
    return [(rows, recording(denoise, maps, recorded, rows)) for rows, denoise in parts]


def recording(denoise: Denoise, maps: Maps, recorded: Recorded, rows: Sequence[int]) -> Denoise:
    """A denoiser of some images of a call that adds what it attends to."""

    def recorder(x: Tensor, level: Level) -> Tensor:
        h, w = x.shape[-2:]
        asked = Asked(maps, [recorded.said[row] for row in rows], (h, w))
        token = _asked.set(asked)
        try:
            x0 = denoise(x, level)
        finally:
            _asked.reset(token)
        for row, image, kept in zip(rows, x0.detach().cpu().clone(), asked.kept(), strict=True):
            recorded.looks[row].append(Look(level, image, kept))
        return x0

    return recorder


def listeners(unet: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that attends to the text, and the part of the UNet that it is in."""
    for part, levels in (("down", unet.down), ("mid", unet.mid), ("up", unet.up)):
        for block in levels.modules():
            if isinstance(block, TransformerBlock):
                yield from (
                    (part, attn) for attn in (block.self_attn, block.cross_attn)[not block.crossing :]
                )


@torch.no_grad()
def keep(maps: Maps, part: str, attn: Attention, given: tuple[Tensor | Once, ...], out: Tensor) -> None:
    """The hook: the conditional rows of a batch [.., conditional], if this is a call that is recorded."""
    asked = _asked.get()
    if asked is not None and asked.maps is maps:
        x, context = (plain(tensor)[-len(asked.said) :] for tensor in given)
        asked.add(part, shares(attn, x, context))


def shares(attn: Attention, x: Tensor, context: Tensor) -> Tensor:
    """softmax(q kᵀ / √d), the mean over heads, float32: x [b n c], context [b m c'] -> [b n m]."""
    q, k = (rearrange(y, "b n (h d) -> b h n d", h=attn.heads).float() for y in (attn.q(x), attn.k(context)))
    scores = (
        own @ rearrange(key, "h m d -> h d m") / q.shape[-1] ** 0.5 for own, key in zip(q, k, strict=True)
    )
    return torch.stack([score.softmax(dim=-1).mean(dim=0) for score in scores])  # one image at a time
