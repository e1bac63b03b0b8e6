"""`python -m dbnorm_jax` is `dbnorm`."""

from dbnorm_jax._cli.main import main

if __name__ == "__main__":
    main()
