"""The implementation; the public names are those of `dbnorm_jax`."""
