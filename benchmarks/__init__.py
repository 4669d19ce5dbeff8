"""How long `ldm` takes, as ratios to what else does the same: `python -m benchmarks`."""
