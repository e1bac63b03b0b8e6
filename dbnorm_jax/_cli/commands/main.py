"""The entry point: runs the command and turns errors of the user's making into one line.

Nothing heavy is imported here, so that `dbnorm --help` imports neither JAX nor NumPy.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

from dbnorm_jax._cli.reading.packages import install_hint

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `dbnorm` and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    With DBNORM_TRACEBACK set in the environment, bad input shows where it was noticed instead.
    """
    sys.exit(_run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: list[str]) -> int:
    # A name the terminal cannot show is no reason to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        import click

        from dbnorm_jax._cli.commands import declared  # noqa: F401 - the commands add themselves
        from dbnorm_jax._cli.commands.group import ReaderGoneError, cli

        try:
            code = cli.main(arguments, prog_name="dbnorm", standalone_mode=False)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except (BrokenPipeError, ReaderGoneError):
            # Python's flush at exit must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()  # the help itself
            return BAD_INPUT
        except click.UsageError as error:
            place = "dbnorm" if error.ctx is None else error.ctx.command_path
            return _fail(f"{error.format_message().rstrip('.')}; see {place} --help")
        except click.ClickException as error:
            return _fail(error.format_message())
        except click.Abort:
            return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        hint = install_hint(package)
        if hint is None:
            raise
        return _fail(f"this command needs the package {package!r}; {hint}")
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError as error:
        return _fail(f"not enough memory: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}")
    except RuntimeError as error:  # what JAX raises when a device is full
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"not enough memory: {error}")
    except (ValueError, TypeError) as error:
        if os.environ.get("DBNORM_TRACEBACK"):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print("dbnorm: error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT
