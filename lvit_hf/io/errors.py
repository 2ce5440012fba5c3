"""Errors as sentences for a user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


logger = logging.getLogger(__name__)
# Tracebacks of what a user's file made a library raise go to the log, if there is one, and not to the terminal.
logging.getLogger(__package__).addHandler(logging.NullHandler())

LONGEST_REASON = 300
# What is no error of a file. (What a library in Rust raises when it panics is no `Exception` either.)
STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class FileError(ValueError):
    """A file cannot be used. The message names it and says why."""


@contextmanager
def file_errors(name: str, problem: str = "cannot be read") -> Iterator[None]:
    """Makes a sentence about a file of whatever a library raises while it is read; the log has the original.

    Args:
        name: The file, as the user knows it.
        problem: What to say of the file if a library raises something.

    Raises:
        FileError: In place of any exception, but for a file or a library that is not there.
    """
    try:
        yield
    except (FileError, FileNotFoundError, ModuleNotFoundError, *STOPS):
        raise
    except OSError as error:
        logger.exception("%s %s.", name, problem)
        if error.errno is not None and error.strerror:  # of the system, and not of a library
            raise FileError(f"{name} cannot be opened: {error.strerror}.") from error
        raise FileError(_complete(name, problem, error)) from error
    except MemoryError as error:
        logger.exception("%s needs too much memory.", name)
        raise FileError(f"{name} needs more memory than there is.") from error
    except BaseException as error:  # a damaged file can make a library raise anything
        logger.exception("%s %s.", name, problem)
        raise FileError(_complete(name, problem, error)) from error


def _complete(name: str, problem: str, error: BaseException) -> str:
    """The first line of what a library says, with the file's name if it does not say that itself."""
    first_line = next(iter(str(error).splitlines()), "").strip()
    reason = (first_line or type(error).__name__)[:LONGEST_REASON].rstrip(".")
    return f"{reason}." if reason.startswith(name) else f"{name} {problem}: {reason}."


def as_sentence(error: Exception, extra: str | None = None) -> str:
    """What an error says to a user."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; this needs pip install 'lvit_hf[{extra}]'."
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} does not exist."
    return str(error)
