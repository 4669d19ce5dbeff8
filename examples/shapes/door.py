"""The door of a script: what is asked wrong is one sentence on stderr and exit code 2, as with `ldm`."""

import argparse
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.cli import Parser
from ldm.errors import InputError, LdmError
from ldm.training.places import absolute

MOST = 10**6  # cases, prompts or pictures


class TakenError(InputError, FileExistsError):
    """A folder that is there already."""


def parser(doc: str | None) -> Parser:
    """The parser of a script with this docstring, shown as it stands."""
    return Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def told() -> Iterator[None]:
    """Ends the script with code 2 and a sentence for an LdmError, with 130 for Ctrl-C; also a decorator."""
    try:
        yield
    except LdmError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(130)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; after the block it is at its place, whole, or after an error nowhere.

    Raises TakenError where one is already, InputError for a place that cannot be written.
    """
    place = absolute("folder", folder)
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        if place.exists():
            raise TakenError(f"{folder} is there already; give another folder, or remove it")
        new.mkdir(parents=True)
        yield new
        new.rename(place)
    except TakenError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder} cannot be written: {reason}; give another folder") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
