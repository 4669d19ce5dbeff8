"""Triton kernels for the UNet's hot loop; imported only when asked for."""
