"""The running mean of the weights, with which a diffusion model paints better than with the last ones.

    mean <- d mean + (1 - d) weights,      d = min(decay, (1 + n) / (10 + n)) after n updates

Early on d is small, so that the mean soon forgets its random beginning (as the code of Rombach et al. 2022).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.checks import number
from ldm.errors import InputError


class Average:
    """The exponential moving average of a module's trained parameters, in float32 and on their devices.

    model  begins the mean; parameters without gradients, and buffers, are not averaged
    decay  in [0, 1]; about 1 / (1 - decay) updates are remembered
    Every method raises InputError for a model, or state, of other parameters.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        self.decay = number("decay", decay, 0, 1)
        self.shadow = {name: p.detach().float().clone() for name, p in trained(model).items()}
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step number `step`, from 1 on, which is then `count`."""
        d = min(self.decay, (1 + step) / (10 + step))
        for mean, p in self.pairs(trained(model)):
            mean.lerp_(p.to(mean), 1 - d)
        self.count = step

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights with their means, in its own dtype."""
        for mean, p in self.pairs(trained(model)):
            p.copy_(mean)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the means, after it its own weights again, bit for bit."""
        kept = {name: p.detach().clone() for name, p in trained(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in trained(model).items():
                    p.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: `count`, int64, and each `shadow.<name>`, the means themselves and no copies."""
        means = {f"shadow.{name}": mean for name, mean in self.shadow.items()}
        return {"count": torch.tensor(self.count)} | means

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        if "count" not in state:
            raise InputError("this state of an average has no count; give what Average.state() returned")
        means = {k.removeprefix("shadow."): v for k, v in state.items() if k.startswith("shadow.")}
        for mean, saved in self.pairs(means):
            mean.copy_(saved)
        self.count = int(state["count"])

    def pairs(self, others: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each mean with the tensor of the same name."""
        for name in sorted(self.shadow.keys() ^ others.keys()):
            where = "not averaged" if name in others else "averaged, and missing"
            raise InputError(f"the parameter {name} is {where} here; give the model that Average was made of")
        for name, mean in self.shadow.items():
            if mean.shape != others[name].shape:
                raise InputError(
                    f"the parameter {name} is {list(others[name].shape)} here, not {list(mean.shape)}; give "
                    "the model that Average was made of"
                )
        return [(mean, others[name]) for name, mean in self.shadow.items()]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimiser changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
