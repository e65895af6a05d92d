"""What a run needs on a TPU slice, asked of the TPU compiler without a TPU: `python -m rcsd_jax.plan`."""
