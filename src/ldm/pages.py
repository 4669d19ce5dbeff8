"""Pages of mapped files: which weights lie on them, and giving the memory back that reading them took.

A weight that maps a file takes memory from the moment it is read. Given back, it takes none until it is read
again, from the system's own copy of the file; what was written to is not given back, for it is in no file.
"""

import ctypes
import mmap
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

MAPS = Path("/proc/self/smaps")  # what is mapped where, and how much of it was written to
HEAD = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


class Range(NamedTuple):
    """Addresses of memory, the last one excluded."""

    first: int
    end: int


def unwritten() -> list[Range]:
    """Where files are mapped to which nothing was written, in order; none where the system cannot tell."""
    if not sys.platform.startswith("linux") or not MAPS.exists():
        return []
    found: list[Range] = []
    for line in MAPS.read_bytes().splitlines():
        if head := HEAD.match(line):
            first, end, inode = head.groups()
            if int(inode):
                found.append(Range(int(first, 16), int(end, 16)))
            of_file = bool(int(inode))
        elif line.startswith((b"Anonymous:", b"Swap:")) and of_file and int(line.split()[1]):
            found.pop()
            of_file = False
    return found


def mapped(tensors: Iterable[Tensor], files: list[Range]) -> list[Range]:
    """The whole pages of those tensors that lie in mapped files, neighbours together."""
    size, firsts = mmap.PAGESIZE, [file.first for file in files]
    pages: dict[int, list[Range]] = {}  # by the file
    for tensor in tensors:
        if tensor.device.type != "cpu":
            continue
        first, length = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        end = first + min(length, tensor.untyped_storage().nbytes())
        at = bisect_right(firsts, first) - 1
        own = Range(-(-first // size) * size, end // size * size)
        if at >= 0 and end <= files[at].end and own.first < own.end:
            pages.setdefault(at, []).append(own)
    return [page for at in sorted(pages) for page in joined(pages[at])]


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order; those with less than a page between them as one, since that page belongs to both."""
    out: list[Range] = []
    for now in sorted(ranges):
        if out and now.first - out[-1].end <= mmap.PAGESIZE:
            out[-1] = Range(out[-1].first, max(out[-1].end, now.end))
        else:
            out.append(now)
    return out


def forget(ranges: Iterable[Range]) -> None:
    """Give back the memory of pages to which nothing was written; the next reader has them from the file."""
    for first, end in ranges:
        library().madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


@cache
def library() -> ctypes.CDLL:
    """That of the system, which Python's own mappings alone are handed to."""
    return ctypes.CDLL(None)
