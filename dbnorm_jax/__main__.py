"""`python -m dbnorm_jax`: the command `dbnorm`."""

from dbnorm_jax._cli.commands.main import main

if __name__ == "__main__":
    main()
