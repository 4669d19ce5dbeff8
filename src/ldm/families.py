"""Every family of models on one page, each told by its difference from another."""

from dataclasses import replace

from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.family import Family, Text
from ldm.schedulers import Schedule, V
from ldm.schedulers.samplers import look_up
from ldm.schedulers.spacing import trailing, uniform
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

# Stable Diffusion 1 and what was made of it.
CLIP_L = CLIPConfig()
SD1 = Family("sd1")
SD1_INPAINT = replace(
    SD1, name="sd1-inpaint", unet=replace(SD1.unet, in_channels=9), beside="inpaint", strength=1.0
)
SD1_PIX2PIX = replace(
    SD1, name="sd1-pix2pix", unet=replace(SD1.unet, in_channels=8), beside="edit", strength=1.0
)

# Stable Diffusion 2: OpenCLIP's text encoder, without its last layer; heads 64 wide.
OPENCLIP_H = CLIPConfig(width=1024, layers=24, heads=16, hidden=4096, activation="gelu", skip=1)
SD2 = replace(
    SD1,
    name="sd2",
    unet=replace(SD1.unet, context_dim=1024, heads=None, head_dim=64, linear=True),
    texts=(Text(OPENCLIP_H, pad="!"),),
)
SD2_V = replace(SD2, name="sd2-v", prediction=V, size=768)
SD2_INPAINT = replace(
    SD2, name="sd2-inpaint", unet=replace(SD2.unet, in_channels=9), beside="inpaint", strength=1.0
)
SD2_DEPTH = replace(SD2, name="sd2-depth", unet=replace(SD2.unet, in_channels=5), beside="depth")
SD_TURBO = replace(SD2, name="sd-turbo", sampler="euler_ancestral", spacing=trailing, steps=1, guidance=0.0)
X4_UPSCALER = replace(
    SD2_V,
    name="sd-x4-upscaler",
    unet=UNetConfig(
        in_channels=7,
        channels=(256, 512, 512, 1024),
        depth=(0, 1, 1, 1),
        context_dim=1024,
        labels=1000,
        crossing=(True, True, True, False),
        linear=True,
    ),
    vae=VAEConfig(channels=(128, 256, 512), scale=0.08333),
    schedule=Schedule(beta_start=0.0001, beta_end=0.02),
    beside="upscale",
    size=512,
    steps=75,
    guidance=9.0,
    strength=1.0,
)

# Stable Diffusion XL: two text encoders, each without its last layer and norm; the picture's size is told.
OPENCLIP_G = CLIPConfig(
    width=1280, layers=32, heads=20, hidden=5120, activation="gelu", skip=1, final_norm=False, projection=1280
)
BIG_G = Text(OPENCLIP_G, pad="!", name="text_encoder_2")
SDXL = Family(
    "sdxl",
    unet=UNetConfig(
        channels=(320, 640, 1280),
        depth=(0, 2, 10),
        mid_depth=10,
        context_dim=2048,
        heads=None,
        head_dim=64,
        vector_dim=2816,
        linear=True,
    ),
    vae=VAEConfig(scale=0.13025, overflows=True),
    texts=(Text(replace(CLIP_L, skip=1, final_norm=False)), BIG_G),
    vector="size",
    blank=True,
    size=1024,
    sampler="euler",
    guidance=5.0,
)
SDXL_INPAINT = replace(
    SDXL,
    name="sdxl-inpaint",
    unet=replace(SDXL.unet, in_channels=9),
    beside="inpaint",
    guidance=7.5,
    strength=1.0,
)
SDXL_REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    unet=replace(
        SDXL.unet,
        channels=(384, 768, 1536, 1536),
        depth=(0, 4, 4, 0),
        mid_depth=4,
        context_dim=1280,
        vector_dim=2560,
    ),
    texts=(BIG_G,),
    vector="score",
    blank=False,
    strength=0.3,
)
SDXL_TURBO = replace(
    SDXL, name="sdxl-turbo", sampler="euler_ancestral", spacing=trailing, size=512, steps=1, guidance=0.0
)

# The models of the latent diffusion paper. Their schedules differ in where the betas end.
LDM_TEXT = Family(
    "ldm-text2img",
    unet=UNetConfig(context_dim=1280),
    texts=(Text(BERTConfig(), pad="[PAD]", name="bert"),),
    spacing=uniform,
    size=256,
    guidance=5.0,
)
VQ_F4 = VAEConfig(channels=(128, 256, 512), latent_channels=3, codes=8192, scale=1.0)
LDM_CELEBA = Family(  # and FFHQ, and LSUN bedrooms
    "ldm-celeba256",
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=(224, 448, 672, 896),
        depth=(0, 1, 1, 1),
        context_dim=None,
        heads=None,
        head_dim=32,
    ),
    vae=VQ_F4,
    texts=(),
    schedule=Schedule(0.0015, 0.0195),
    spacing=uniform,
    size=256,
    guidance=1.0,
    averaged=True,
)
LDM_CHURCHES = replace(
    LDM_CELEBA,
    name="ldm-churches256",
    unet=UNetConfig(
        channels=(192, 384, 384, 768, 768),
        depth=(1, 1, 1, 1, 0),
        context_dim=None,
        scale_shift=True,
        res_sampling=True,
    ),
    vae=VAEConfig(scale=1.0),  # the file has the scale
    schedule=Schedule(0.0015, 0.0155),
)
LDM_CIN = replace(
    LDM_CELEBA,
    name="ldm-cin256",
    unet=replace(LDM_CELEBA.unet, channels=(192, 384, 576, 960), context_dim=512, heads=1, head_dim=None),
    texts=(Text(ClassConfig(), name="class_embedder"),),
    guidance=3.0,
)
LDM_CIN_F8 = replace(
    LDM_CIN,
    name="ldm-cin256-vq-f8",
    unet=UNetConfig(channels=(256, 512, 1024), depth=(1, 1, 1), context_dim=512, heads=None, head_dim=32),
    vae=VAEConfig(
        channels=(128, 256, 256, 512), codes=16384, attention=(False, False, False, True), scale=1.0
    ),
    texts=(Text(ClassConfig(classes=1000, empty=None), name="class_embedder"),),
    guidance=1.0,
)
LDM_SR = replace(
    LDM_CELEBA,
    name="ldm-sr",
    unet=replace(LDM_CELEBA.unet, in_channels=6, channels=(160, 320, 320, 640), depth=(0, 0, 0, 1)),
    schedule=Schedule(0.0015, 0.0155),
    beside="enlarge",
    strength=1.0,
)
LDM_INPAINT = replace(
    LDM_CELEBA,
    name="ldm-inpaint",
    unet=replace(
        LDM_CELEBA.unet,
        in_channels=7,
        channels=(256, 512, 768, 1024),
        heads=8,
        head_dim=None,
        res_sampling=True,
    ),
    vae=replace(VQ_F4, mid_attention=False),
    schedule=Schedule(0.0015, 0.0205),
    beside="fill",
    size=512,
    strength=1.0,
)

# The model in this package: 64×64 scenes of coloured shapes; see examples/shapes.
SHAPES = Family(
    "shapes",
    unet=UNetConfig(16, 16, (48, 96), depth=(0, 1), res_blocks=1, context_dim=96, heads=3, groups=16),
    vae=VAEConfig(channels=(32, 48, 64), res_blocks=1, latent_channels=16, groups=16, scale=1.0),
    texts=(Text(CLIPConfig(width=96, layers=3, heads=3, hidden=384, vocab=771, length=32)),),
    schedule=Schedule(beta_end=0.02),
    prediction=V,
    spacing=trailing,
    set_alpha_to_one=True,
    size=64,
    sampler="ddpm",  # fresh noise at every step drowns the errors of earlier ones
    steps=25,
    guidance=3.0,
)

FAMILIES = {
    family.name: family
    for family in (
        *(LDM_TEXT, LDM_CELEBA, LDM_CHURCHES),
        *(LDM_CIN, LDM_CIN_F8, LDM_SR, LDM_INPAINT),
        *(SD1, SD1_INPAINT, SD1_PIX2PIX),
        *(SD2, SD2_V, SD2_INPAINT, SD2_DEPTH, SD_TURBO, X4_UPSCALER),
        *(SDXL, SDXL_INPAINT, SDXL_REFINER, SDXL_TURBO),
        SHAPES,
    )
}


def families() -> list[str]:
    """The names that `ldm.load(..., family=...)` knows."""
    return list(FAMILIES)


def family(name: str) -> Family:
    """A family by name. Raises InputError, with the nearest name, for one that is not known."""
    return look_up("family", name, FAMILIES)
