"""One forward pass of Stable Diffusion 1's UNet in float32, ours and diffusers', on the same weights.

The weights are random and shared in memory: our tensors are views of diffusers', by the rule table that loads
checkpoints. So both compute the same function, which is checked.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.table import Row
from benchmarks.timing import medians
from ldm.checkpoint.diffusers import unet_rules
from ldm.checkpoint.table import Rule, table
from ldm.families import SD1
from ldm.unet import UNet

ROUNDS = {32: 7, 64: 5}  # by latent pixels along a side: images of 256 and of 512 pixels
TOKENS = 77
Network = TypeVar("Network", bound=nn.Module)


def rows(side: int = 32) -> Iterator[Row]:
    """The time of one pass on a latent [1 4 side side]."""
    peer = diffusers_unet()
    yield row(our_unet(peer), peer, side)


def row(mine: UNet, peer: Any, side: int) -> Row:
    """Both networks on one latent [1 4 side side]."""
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(1, SD1.unet.in_channels, side, side, generator=generator)
    context = torch.randn(1, TOKENS, SD1.unet.context_dim, generator=generator)
    t = torch.tensor([500.0])
    contestants: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: mine(x, t, context),
        "theirs": lambda: peer(x, t, context, return_dict=False)[0],
    }
    with torch.no_grad():
        ours, theirs = contestants["ours"](), contestants["theirs"]()
        seconds = medians(contestants, ROUNDS[side], warm_up=0)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error < 1e-4:  # float32 through some hundred layers
        raise AssertionError(
            f"the two UNets differ by {error:.1e} of the largest output: not the same function"
        )
    note = f"outputs agree to {error:.0e}; {torch.get_num_threads()} threads"
    return Row(
        f"UNet of SD 1, latents {side}×{side}", seconds["ours"], seconds["theirs"], ratio=1.0, note=note
    )


def diffusers_unet() -> Any:
    """diffusers' UNet of Stable Diffusion 1 with random weights of a size that keeps activations moderate."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network: Any = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=SD1.unet.context_dim, attention_head_dim=SD1.unet.heads
        )
    return filled(network)


def filled(network: nn.Module) -> Any:
    """A network on the meta device, with random weights on the CPU."""
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            fill(module, name, weight, generator)
    return network


def fill(module: nn.Module, name: str, weight: Tensor, generator: torch.Generator) -> None:
    """Norms that do nothing, no biases, and weights of variance 1 / 3 inputs."""
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        weight.fill_(1.0 if name == "weight" else 0.0)
    elif name == "bias":
        weight.zero_()
    else:
        bound = weight[0].numel() ** -0.5
        weight.uniform_(-bound, bound, generator=generator)


def our_unet(peer: nn.Module) -> UNet:
    """Our UNet on the peer's own tensors."""
    with torch.device("meta"):
        network = UNet(SD1.unet)
    return sharing(network, peer, unet_rules(SD1.unet))


def sharing(network: Network, peer: nn.Module, rules: Sequence[Rule]) -> Network:
    """A network of ours on the meta device, on the tensors of a peer whose names the rules tell."""
    theirs = peer.state_dict()
    sources = table(network.state_dict(), rules)
    state = {ours: source.form.load(theirs[source.key]) for ours, source in sources.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)
