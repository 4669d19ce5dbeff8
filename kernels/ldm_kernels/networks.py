"""Networks made ready to draw on a GPU: the same functions of the same weights, in fewer kernels.

    q, k, v    one product; of a text, k and v, once a prompt
    told       what all residual blocks hear of the noise levels: one product for all levels of a path
    norms      with SiLU, and with what the noise level and the convolution before them add
    x + z      where a residual block ends, with the biases of its convolutions

Channels lie last. Each is computed by the fastest of its ways (`choice`), attention too, unless a backend is
in force. Weights that are put side by side stay there once: those of the layers are parts of them.
What is made ready draws and does nothing else. The UNet's step is repeated as one CUDA graph (`steps`), and
so is what a text encoder does (`texts`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention, in_force
from ldm.clip import TextEncoder
from ldm.errors import InputError
from ldm.layers import ResBlock
from ldm.methods import Method, take
from ldm.model import Model
from ldm.once import Once, by
from ldm.unet import UNet
from ldm.unet.blocks import GEGLU
from ldm.vae.autoencoder import Decoder, Encoder
from ldm_kernels import choice
from ldm_kernels.backend import TYPES, attend
from ldm_kernels.entry import LAST, enter
from ldm_kernels.precision import narrow
from ldm_kernels.steps import Captured
from ldm_kernels.texts import Reader
from ldm_kernels.ways import gate, join, norm_images, norm_tokens


@torch.no_grad()
def prepare(model: Model) -> None:
    """Make a model ready, in place. Raises InputError where they cannot be."""
    if getattr(model.unet, "packed", False):
        return
    dtype, on_gpu = model.unet.conv_in.weight.dtype, model.device.type == "cuda"
    if not choice.INTERPRETED and not (on_gpu and dtype in TYPES):
        raise InputError(
            f"the UNet is {dtype} on {model.device}; what is packed on a GPU is bfloat16 or float16: "
            "load with dtype=torch.bfloat16"
        )
    if on_gpu:
        narrow(model.vae)
        for encoder in model.text_encoders:
            if isinstance(encoder, TextEncoder):
                encoder.pooled = Reader(encoder)  # type: ignore[method-assign]
    for network in (model.unet, model.vae):
        network.requires_grad_(False).to(memory_format=LAST)
        pack(network)
    run = Method(unet_forward, model.unet)
    enter(model.unet, Captured(model.unet, run) if on_gpu else run)
    enter(model.vae.encoder, Method(encoder_forward, model.vae.encoder))
    enter(model.vae.decoder, Method(decoder_forward, model.vae.decoder))


def pack(network: nn.Module) -> None:
    """All parts of a network."""
    modules = list(network.modules())
    blocks = [module for module in modules if isinstance(module, ResBlock)]
    heard = hearing([block for block in blocks if block.time is not None])
    for block in blocks:
        take(block, res_block, heard.get(block), Ends.of(block))
    for module in modules:
        if isinstance(module, Attention):
            take(module, attention, *fused(module))
        elif isinstance(module, GEGLU):
            take(module, feed_forward)
        elif isinstance(module, nn.LayerNorm):
            take(module, normed_tokens)
        elif isinstance(module, nn.GroupNorm):
            take(module, normed)


# the networks


def unet_forward(
    unet: UNet,
    x: Tensor,
    t: Tensor | Once,
    context: Tensor | Once | None = None,
    vector: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """As a UNet's own; level and text are always `Once`, as blocks share what is made of them."""
    time = t if isinstance(t, Once) else Once(unet.embed(t, vector, label))
    return UNet.forward(unet, x, time, Once(context) if isinstance(context, Tensor) else context)


def encoder_forward(encoder: Encoder, images: Tensor) -> Tensor:
    """As an encoder's own."""
    h = encoder.conv_in(images)
    for level in encoder.down:
        h = level(h)
    return encoder.conv_out(normed(encoder.norm_out, encoder.mid(h), silu=True))


def decoder_forward(decoder: Decoder, z: Tensor) -> Tensor:
    """As a decoder's own."""
    h = decoder.mid(decoder.conv_in(z))
    for level in decoder.up:
        h = level(h)
    return decoder.conv_out(normed(decoder.norm_out, h, silu=True))


# their parts


class Product:
    """Several linear layers of one input as one product, whose columns they share."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def side_by_side(layers: Sequence[nn.Linear]) -> Tensor:
    """Their weights, one below the other; each layer's is a part of it from now on."""
    whole = torch.cat([layer.weight for layer in layers])
    for layer, part in zip(layers, whole.split([len(layer.weight) for layer in layers]), strict=True):
        layer.weight.data = part
    return whole


def fused(attn: Attention) -> tuple[Product | None, Product]:
    """q, k and v of x, where x can be attended to; k and v of something else."""
    own = attn.k.in_features == attn.q.in_features
    layers = [attn.q, attn.k, attn.v] if own else [attn.k, attn.v]
    weight = side_by_side(layers)
    bias = None if attn.q.bias is None else torch.cat([layer.bias for layer in layers])
    if not own:
        return None, Product(weight, bias)
    first = len(attn.q.weight)
    return Product(weight, bias), Product(weight[first:], None if bias is None else bias[first:])


def attention(
    attn: Attention, qkv: Product | None, kv: Product, x: Tensor, context: Tensor | Once | None = None
) -> Tensor:
    """As an Attention's own."""
    if context is None and qkv is not None:
        q, k, v = rearrange(qkv(x), "b n (three h d) -> three b h n d", three=3, h=attn.heads)
    else:
        q = rearrange(attn.q(x), "b n (h d) -> b h n d", h=attn.heads)
        k, v = rearrange(by(kv, context), "b m (two h d) -> two b h m d", two=2, h=attn.heads)
    return attn.out(rearrange(in_force(attend)(q, k, v, attn.causal), "b h n d -> b n (h d)"))


class Told(Product):
    """What all residual blocks hear of the noise level. [b time_dim] -> [b c]"""

    def __call__(self, time: Tensor) -> Tensor:
        return super().__call__(F.silu(time))


class Heard(NamedTuple):
    """What one of them hears of it."""

    told: Told
    columns: slice


def hearing(blocks: Sequence[ResBlock]) -> dict[ResBlock, Heard]:
    """What each of some blocks hears. What its first convolution adds to all pixels is told with it."""
    if not blocks:
        return {}
    biases = [
        block.time.bias if block.scale_shift else block.time.bias + without(block.conv1) for block in blocks
    ]
    told, heard, at = Told(side_by_side([block.time for block in blocks]), torch.cat(biases)), {}, 0
    for block in blocks:
        end = at + block.time.out_features
        heard[block], at = Heard(told, slice(at, end)), end
    return heard


def without(conv: nn.Module) -> Tensor | None:
    """What a convolution adds to all pixels [c], which it does no more; None of what is no convolution."""
    if not isinstance(conv, nn.Conv2d):
        return None
    bias, conv.bias = conv.bias, None
    return bias


class Ends(NamedTuple):
    """What a residual block adds to all pixels."""

    first: Tensor | None  # [1 c] after its first convolution; None where the noise level tells it
    last: Tensor  # [c]

    @classmethod
    def of(cls, block: ResBlock) -> "Ends":
        """Taken from its convolutions."""
        first, last, skipped = (without(conv) for conv in (block.conv1, block.conv2, block.skip))
        return cls(None if first is None else first[None], last if skipped is None else last + skipped)


def res_block(
    block: ResBlock, heard: Heard | None, ends: Ends, x: Tensor, time: Tensor | Once | None = None
) -> Tensor:
    """As a ResBlock's own."""
    h = block.conv1(block.resample(normed(block.norm1, x, silu=True)))
    added, film = ends.first, None
    if heard is not None:
        told = by(heard.told, time)[:, heard.columns]
        added, film = (added, told) if block.scale_shift else (told, None)
    h = block.conv2(normed(block.norm2, h, True, added, film))
    return join(h, block.skip(block.resample(x)), ends.last)


def normed(
    norm: nn.GroupNorm, x: Tensor, silu: bool = False, added: Tensor | None = None, film: Tensor | None = None
) -> Tensor:
    """As a GroupNorm's own, with what stands around it."""
    return norm_images(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu, added, film)


def normed_tokens(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """As a LayerNorm's own."""
    return norm_tokens(x, norm.weight, norm.bias, norm.eps)


def feed_forward(ff: GEGLU, x: Tensor) -> Tensor:
    """As a GEGLU's own."""
    return ff.down(gate(ff.up(x)))
