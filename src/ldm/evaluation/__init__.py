"""How good a model is: what is measured of its pictures.

distances   how far apart two sets of features are: Fréchet (FID) and kernel (KID)
features    where features come from: a file, or a folder of pictures and a network
shapes      the bundled model's world, and the judge that says whether a picture shows what was asked for
command     `ldm eval`
"""

from ldm.evaluation.distances import KernelDistance, frechet, frechet_of_moments, kernel_distance, mmd2

__all__ = ["KernelDistance", "frechet", "frechet_of_moments", "kernel_distance", "mmd2"]
