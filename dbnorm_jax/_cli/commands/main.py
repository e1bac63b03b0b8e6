"""The entry point: runs the command and turns errors of the user's making into one line.

Nothing heavy is imported here, so that `dbnorm --help` imports neither JAX nor NumPy.
"""

import contextlib
import io
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from dbnorm_jax._cli.reading.packages import install_hint
from dbnorm_jax._cli.showing.terminal import say

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 141

# What else asks a process to end; Windows has no SIGHUP.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Another one so soon, as timeout(1) sends, does not disturb the cleaning up.
_CLEANING_S = 1.0


class _EndedError(BaseException):
    """A signal asked the command to end; no error of the work, so that none handles it."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `dbnorm` and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    SIGTERM and SIGHUP end it as Ctrl-C does, with 143 and 129: what is half-written is removed.
    With DBNORM_TRACEBACK set in the environment, bad input shows where it was noticed, too.
    """
    try:
        with _ending():
            code = _run(sys.argv[1:] if arguments is None else list(arguments))
    except _EndedError as ended:
        say(f"dbnorm: ended by {signal.Signals(ended.number).name}", to_stderr=True)
        code = 128 + ended.number
    sys.exit(code)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Lets signals that would end the process at once unwind it instead.

    Those that somebody else handles or ignores (nohup) stay theirs. Only the main thread may ask.
    """
    ended = -math.inf
    asked: _EndedError | None = None

    def end(number: int, _: FrameType | None) -> None:
        nonlocal ended, asked
        now = time.monotonic()
        if now - ended > _CLEANING_S:
            ended, asked = now, _EndedError(number)
            raise asked

    in_main = threading.current_thread() is threading.main_thread()
    ours = [each for each in _ENDS if in_main and signal.getsignal(each) == signal.SIG_DFL]
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    except Exception:
        # A compiled module that is just being imported makes an ImportError of it.
        if asked is not None:
            raise asked from None
        raise
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


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
            _give_stdout_up()
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
        if error.filename is None:  # of files every error has the name
            _give_stdout_up()
        place = "standard output" if error.filename is None else error.filename
        return _fail(f"{place}: {error.strerror or error}")
    except RuntimeError as error:  # what JAX raises when a device is full
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"not enough memory: {error}")
    except (ValueError, TypeError) as error:
        if os.environ.get("DBNORM_TRACEBACK"):
            for line in traceback.format_exc().split("\n"):
                say(line, to_stderr=True)
        return _fail(str(error))


def _give_stdout_up() -> None:
    """Python flushes it at exit, which must not fail again."""
    with contextlib.suppress(OSError):  # of a stdout that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    # Some messages of JAX and click have several lines; names in ours are printable already.
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    say(f"dbnorm: error: {line}", to_stderr=True)
    return BAD_INPUT
