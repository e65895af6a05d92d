"""Plans a run on a TPU slice with the TPU compiler, without a TPU: `python -m rcsd_jax.plan`."""
