"""Scripts: how they end."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from cl_train._errors import InputError

# The disk, not the program: full, over quota, failing. Users mend these, and a traceback tells them nothing.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@contextlib.contextmanager
def values_from_flags() -> Iterator[None]:
    """Within it a ValueError is an InputError: what is built there is built from a user's flags."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process with a code that says how it went.

    | Code | Meaning |
    |---|---|
    | 0 | All was done. |
    | 2 | The input cannot be used, or `pretrain` cannot write to the run's folder; one line says which. |
    | 130, 138, 143 | Asked to stop by SIGINT, SIGUSR1, SIGTERM; `pretrain` has saved, and the same command goes on. |
    | 1 | Anything else, with its traceback, or in one line where another disk is full, over quota or failing. |

    `torchrun` and `accelerate launch` for several processes end with code 1 whatever the code of the processes.

    Args:
        main: Called without arguments.
    """
    try:
        main()
    except InputError as error:
        _end(error, 2)
    except OSError as error:
        if not _is_of_the_disk(error):
            raise
        _end(error, 1)
    sys.exit(0)


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether it is, or was raised from, an OSError with such a number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            return True
        error = error.__cause__
    return False


def _end(error: Exception, code: int) -> NoReturn:
    rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
    print(f"{rank}{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
    sys.exit(code)
