"""A class instead of a prompt: each is one token (Rombach et al. 2022, sec. 4.3.2)."""

from torch import Tensor, nn

from ldm.clip.config import ClassConfig


class ClassEmbedder(nn.Module):
    """Class numbers [b] -> tokens [b 1 width]."""

    def __init__(self, config: ClassConfig = ClassConfig()):
        super().__init__()
        self.config = config
        self.classes = nn.Embedding(config.classes, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.classes(ids)[:, None]
