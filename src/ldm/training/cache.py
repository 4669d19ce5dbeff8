"""What frozen networks make of the data, computed once: latents and text features in safetensors files.

    key = sha256(the image's bytes, its frame, the encoder's weights and dtype)      folder/ke/key.safetensors

Nothing is ever stale: what another image, frame or encoder gives has another key. A file is written under a
name of its own and then renamed, so several processes may fill one folder; they write the same.
"""

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.checkpoint.files import File, write
from ldm.checks import texts, whole
from ldm.clip.embedding import TokenEmbedding
from ldm.coding import encodable
from ldm.errors import CheckpointError, InputError
from ldm.model import Model
from ldm.prompts import chunks, encode_weighted, most_chunks
from ldm.training.framing import DamagedError, Frame, Item, Source, digest
from ldm.training.images import MOST_NUMBER, Images, passed_over
from ldm.vae import VAE
from ldm.walk import check_finite

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
HELD = 256 * 256  # pixels that are encoded at once on a CPU, if not one image

log = logging.getLogger("ldm")


def cached(folder: str | Path, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
    """The tensors of a key: from its file, or computed and put there; bit for bit the same, on the CPU.

    key  64 hexadecimal digits, as `digest` makes them
    A damaged file is logged and made anew. Raises CheckpointError for a sound file that is not of this cache,
    which stays as it is, and where none can be written.
    """
    path = Path(folder).expanduser() / key[:2] / f"{key}.safetensors"
    try:
        if path.exists():
            return remembered(path, key)
    except TornError as error:
        log.warning("made anew: %s", error)
    found = {name: tensor.detach().to(CPU) for name, tensor in compute().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path.parent} cannot be made: {error.strerror or error}") from error
    write(path, found, {"ldm_key": key, "ldm_sum": total(found)})
    return found


def fingerprint(*networks: nn.Module) -> str:
    """A hash of networks' configs, weights and dtypes, 64 hexadecimal digits; on all devices the same."""

    def parts() -> Iterable[bytes]:
        for network in networks:
            yield repr(getattr(network, "config", None)).encode()
            for name, weight in network.state_dict().items():
                yield f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
                yield raw(weight)

    return digest(parts())


class Latents:
    """A source, to the moments of its latent: `Batches(images, size, made=Latents(model, folder))`.

    The item's image is the mean and the deviation of q(z | x), both times the family's scale, float32
    [2c h w]; `sample(moments, eps)` is a latent. A VQ model's deviation is 0. Each is encoded alone, so that
    it does not depend on the batch. The autoencoder's weights are taken to stay as they are. An image has two
    latents, as it is and mirrored; cut at random it would have another in each epoch, and is refused.
    """

    def __init__(self, model: Model, folder: str | Path):
        self.model, self.folder = model, folder
        self.mark = fingerprint(model.vae).encode()

    def __call__(self, source: Source) -> Item:
        """Raises DamagedError, and InputError for a random cut or a size the autoencoder does not take."""
        if source.frame != Frame(source.frame.size, mirrored=source.frame.mirrored):
            raise InputError(
                f"{source.name} is cut at random, elsewhere in each epoch, so that its latent would never be "
                "found again; give crop center, or no cache"
            )
        key = digest([b"latent", self.mark, source.key.encode()])
        held = cached(self.folder, key, lambda: self.encoded(source.item()))
        top, left, height, width = held["place"].tolist()
        return Item(held["moments"], source.prompt, source.name, (height, width), (top, left))

    def encoded(self, item: Item) -> Tensors:
        """What is kept of an item."""
        moments = posterior(self.model, rearrange(item.image, "c h w -> 1 c h w"))
        return {"moments": moments[0], "place": torch.tensor([*item.corner, *item.original])}


class Texts:
    """Texts, to the features of a model's text encoders, which are taken to stay as they are.

    chunks  that every text is filled up to and cut after; None: as many as the longest of a call has
    """

    def __init__(self, model: Model, folder: str | Path, chunks: int | None = None):
        self.model, self.folder, self.chunks = model, folder, chunks
        self.mark = fingerprint(*model.text_encoders).encode()

    def __call__(self, prompts: str | list[str]) -> tuple[Tensor, Tensor | None]:
        """Hidden states of texts [b m c'], and SDXL's pooled text [b c''] or None, in the encoders' dtype.

        Texts longer than the encoders take are in several chunks, and shorter ones filled up with empty ones.
        Raises InputError.
        """
        rows = texts("prompts", prompts)
        if not self.model.tokenizers:
            raise InputError(f"{self.model.family.name} hears no texts; give a model that does")
        least = self.chunks or most_chunks(self.model.tokenizers, rows, False)
        held = [self.one(row, least) for row in rows]
        pooled = torch.cat([each["pooled"] for each in held]) if "pooled" in held[0] else None
        return torch.cat([each["context"] for each in held]), pooled

    def one(self, prompt: str, least: int) -> Tensors:
        """The features of a text, in so many chunks."""
        said = [
            as_key(chunks(tokenizer, text, False)[0][:least], encoder.tokens)
            for tokenizer, encoder in zip(self.model.tokenizers, self.model.text_encoders, strict=True)
            for text in (prompt, "")
        ]
        key = digest([b"text", self.mark, str(least).encode(), *said])
        return cached(self.folder, key, lambda: self.encoded(prompt, least))

    @torch.no_grad()
    def encoded(self, prompt: str, least: int) -> Tensors:
        """What is kept of a text."""
        model = self.model
        context, pooled = encode_weighted(
            model.tokenizers, model.text_encoders, [prompt], False, least, most=least
        )
        check_finite([torch.isfinite(context).all()], "encoding a text")
        return {"context": context} if pooled is None else {"context": context, "pooled": pooled}


@torch.no_grad()
def as_key(ids: Tensor, table: TokenEmbedding) -> bytes:
    """Ids, for a key; those of added tokens as the vectors that they have now."""
    new = ids >= table.num_embeddings
    vectors = table(ids[new].to(table.weight.device))
    return repr(ids.masked_fill(new, -1).tolist()).encode() + raw(vectors)


def fill(
    images: Images, latents: Latents | None = None, heard: Texts | None = None, epochs: int = 1,
    rank: int = 0, world: int = 1, progress: bool = True,
) -> dict[str, str]:  # fmt: skip
    """Remember what epochs of images and their texts come to. Returns the damaged ones by name, and why.

    epochs  one is enough where nothing is random
    rank    this process, 0 to world - 1, of `world`, each of which does its share
    Raises InputError, for more damaged images than `images.most_bad` too.
    """
    from tqdm.auto import tqdm

    world = whole("world", world, MOST_NUMBER)
    rows = range(whole("rank", rank, world - 1, least=0), len(images), world)
    told = [images.entries[index].prompt for index in rows]
    for text in tqdm(sorted(set(texts("prompts", told))) if heard else [], "texts", disable=not progress):
        if heard:
            heard(text)
    bad = dict[str, str]()
    pairs = [(epoch, index) for epoch in range(whole("epochs", epochs, MOST_NUMBER)) for index in rows]
    for epoch, index in tqdm(pairs if latents else [], "latents", disable=not progress):
        try:
            if latents:
                latents(images.source(epoch, index))
        except DamagedError as error:
            bad = passed_over(bad, {images.entries[index].name: str(error)}, images.most_bad)
    return bad


@torch.no_grad()
def posterior(model: Model, images: Tensor) -> Tensor:
    """Mean and deviation of q(z | x) times the family's scale, float32 [b 2c h w]; VQ: deviation 0.

    images  [b 3 H W] in [-1, 1]
    Raises InputError for images that the autoencoder does not take.
    """
    x = encodable(model.family, images).to(model.device, model.vae.to_moments.weight.dtype)
    *_, h, w = x.shape
    # a CPU computes faster on what its cache holds
    few = max(1, HELD // (h * w)) if x.device.type == "cpu" else len(x)
    moments = torch.cat([gaussian(model.vae, part) for part in x.split(few)])
    check_finite([torch.isfinite(moments).all()], "encoding")
    return moments


def gaussian(vae: VAE, x: Tensor) -> Tensor:
    """As `posterior`, of images in the autoencoder's dtype and on its device."""
    mean, logvar = vae.moments(x)
    std = torch.zeros_like(mean) if logvar is None else (logvar.float() / 2).exp()
    return torch.cat([mean.float(), std.float()], dim=1) * vae.config.scale


def sample(moments: Tensor, eps: Tensor) -> Tensor:
    """Moments [b 2c h w], eps [b c h w] -> mean + deviation eps (Kingma & Welling 2014, eq. 10)."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * eps


class TornError(Exception):
    """A file of the cache that is not whole."""


def remembered(path: Path, key: str) -> Tensors:
    """What a file holds. Raises TornError, and CheckpointError for a file of someone else's."""
    try:
        file = File.open(path)
        found = {name: file.read(name) for name in file.entries}
    except CheckpointError as error:
        raise TornError(str(error)) from error
    if file.metadata.get("ldm_key") != key:
        raise CheckpointError(f"{path} was not written by this cache; move it, or give another folder")
    if file.metadata.get("ldm_sum") != total(found):
        raise TornError(f"{path} has other numbers than were written")
    return found


def total(tensors: Mapping[str, Tensor]) -> str:
    """A check sum of all numbers."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(raw(tensors[name]), found)
    return f"{found:08x}"


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor's numbers."""
    return tensor.detach().to(CPU).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
