"""A disk that fails, or a machine that dies, at one chosen call to the system."""

import errno
import io
import os
from contextlib import contextmanager
from unittest import mock

CALLS = (
    "open", "close", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "listdir", "scandir", "stat",
    "lstat", "fstat",
)  # fmt: skip
SKIPPED = ("fsync",)  # is counted but not done: a test survives no power cut, and this is its slowest part


class DiedError(BaseException):
    """In place of SIGKILL: nothing catches it, and no call after it has an effect."""


class System:
    """Counts calls to the system; from the given one on, or at that alone, each fails.

    kind  "once": OSError, and then all is well; "always": OSError from there on; "death": the machine stops
    """

    def __init__(self, at=None, kind="once", number=errno.ENOSPC):
        self.at, self.kind, self.number, self.calls = at, kind, number, []

    def call(self, name):
        """Whether this call is to fail."""
        self.calls.append(name)
        now = len(self.calls) - 1
        return self.at is not None and (now == self.at or (now > self.at and self.kind != "once"))

    def error(self):
        return DiedError() if self.kind == "death" else OSError(self.number, os.strerror(self.number))

    def wrapped(self, name, real):
        def function(*args, **options):
            if self.call(name):
                raise self.error()
            return None if name in SKIPPED else real(*args, **options)

        return function

    def opened(self, *args, **options):
        if self.call("io.open"):
            raise self.error()
        return Opened(self, self.real_open(*args, **options))

    @contextmanager
    def running(self):
        """Within the block the library's calls come here."""
        self.real_open = io.open
        with (
            mock.patch.object(io, "open", self.opened),
            mock.patch.multiple(os, **{name: self.wrapped(name, getattr(os, name)) for name in CALLS}),
        ):
            yield self


class Opened:
    """An open file, whose failing write has written half."""

    def __init__(self, system, file):
        self.system, self.file = system, file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        if self.system.call("close"):
            raise self.system.error()

    def write(self, data):
        if self.system.call("write"):
            self.file.write(bytes(data)[: len(data) // 2])
            raise self.system.error()
        return self.file.write(data)

    def flush(self):
        if self.system.call("flush"):
            raise self.system.error()
        self.file.flush()

    def read(self, *args):
        if self.system.call("read"):
            raise self.system.error()
        return self.file.read(*args)
