"""Whatever call to the system fails in a save, and wherever the machine dies: old or new, whole."""

import errno
import os
import re
import shutil
from dataclasses import replace

import pytest

from ldm import CheckpointError, InputError
from ldm.training.checkpoints import latest, load, save
from ldm.training.places import HIDDEN, listed, step_of
from ldm.training.sealed import is_whole
from tests.training.faults import DiedError, System
from tests.training.test_checkpoints import FACTS, begun, holds, names, state


def first(folder):
    """The first save of a run, into a folder that is not there."""
    return {2}


def second(folder):
    begun(folder, 1)
    return {1, 2}


def third(folder):
    """The oldest is to go."""
    begun(folder, 0, 1)
    return {1, 2}


def again(folder):
    """One is replaced."""
    begun(folder, 1)
    save(folder, 2, state(3), FACTS)
    return {2, 3}


def after_a_kill(folder):
    begun(folder, 1)
    shutil.copytree(folder / "step-00000001", folder / ".step-00000002.01234567.tmp")
    (folder / "step-00000001").rename(folder / ".step-00000001.01234567.old")
    return {1, 2}


CASES = [first, second, third, again, after_a_kill]
SAME = {3: 2}  # the state of seed 3 is saved as step 2


def content(folder):
    """The seed of the state in the latest checkpoint."""
    found = latest(folder)
    (seed,) = (s for s in (0, 1, 2, 3) if holds(found, s) or (s in SAME and same_as(found, s)))
    return seed


def same_as(found, seed):
    return holds(replace(found, step=seed), seed)


def calls(prepare, folder):
    prepare(folder)
    with System().running() as system:
        save(folder, 2, state(2), FACTS)
    assert content(folder) == 2
    return len(system.calls), set(system.calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["once", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("always", "death"))]
)
@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(case, marks=() if i < 2 else pytest.mark.slow, id=case.__name__)
        for i, case in enumerate(CASES)
    ],
)
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new(tmp_path, prepare, kind):
    count, kinds = calls(prepare, tmp_path / "model")
    assert count > 60 and {"write", "fsync", "rename", "replace", "mkdir", "close", "flush"} <= kinds
    for at in range(count):
        folder = tmp_path / str(at)
        fine = prepare(folder)
        before = {step_of(path) for path in listed(folder)}
        with System(at, kind).running():
            try:
                save(folder, 2, state(2), FACTS)
                told = None
            except (InputError, DiedError) as error:
                told = error
        if isinstance(told, InputError):
            assert re.search(r"cannot be (written|read).*No space left", str(told)), told
        if prepare is first and told is not None and not list(folder.glob("step-*")):
            with pytest.raises(CheckpointError, match="has no checkpoint"):
                latest(folder)
        else:
            assert content(folder) in ({2} if told is None else fine), (at, told)
        there = {step_of(path) for path in listed(folder)}
        assert all(map(is_whole, listed(folder))) and (2 in there - before or before <= there)
        # and the next save goes well and cleans up
        save(folder, 4, state(4), FACTS)
        assert holds(latest(folder), 4)
        assert not [name for name in names(folder) if HIDDEN.fullmatch(name)]
        shutil.rmtree(folder)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EMFILE])
def test_the_reason_is_told_with_what_to_do(tmp_path, number):
    begun(tmp_path, 1)
    with System(40, "always", number).running(), pytest.raises(InputError) as caught:
        save(tmp_path, 2, state(2), FACTS)
    assert os.strerror(number) in str(caught.value) and str(tmp_path) in str(caught.value)
    remedy = "free some space" if number == errno.EDQUOT else "give a folder that can be written"
    assert remedy in str(caught.value) and "no checkpoint was lost" in str(caught.value)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Each file and each folder is synced after its last change, before the rename that makes it count."""
    done, real, opened = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}, os.readlink
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("sync", opened(f"/proc/self/fd/{fd}"))),
                                                 real["fsync"](fd)))  # fmt: skip
    for name in ("rename", "replace"):
        monkeypatch.setattr(
            os, name, lambda a, b, name=name: (done.append(("move", str(a), str(b))), real[name](a, b))
        )
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("files are told by /proc")
    begun(tmp_path / "run", 1, 2, 3, keep=2)
    moves = [i for i, line in enumerate(done) if line[0] == "move" and line[2].endswith("step-00000003")]
    (at,) = moves
    hidden = done[at][1]
    synced = [line[1] for line in done[:at] if line[0] == "sync"]
    files = [line for line in done[:at] if line[0] == "move" and line[2].startswith(hidden)]
    assert sorted(os.path.basename(line[2]) for line in files) == names(tmp_path / "run" / "step-00000003")
    for line in files:
        i = done.index(line)
        assert line[1] in [sync[1] for sync in done[:i] if sync[0] == "sync"]  # the file under its first name
        assert hidden in [sync[1] for sync in done[i:at] if sync[0] == "sync"]  # and its name
    assert hidden in synced
    assert done[at + 1] == ("sync", str(tmp_path / "run"))  # before anything older goes
    gone = [line for line in done[at + 2 :] if line[0] == "move"]
    assert [os.path.basename(line[1]) for line in gone] == ["step-00000001"]


def test_a_file_that_reads_back_otherwise_is_no_checkpoint(tmp_path, monkeypatch):
    """As from a disk that loses what it was given."""
    begun(tmp_path, 1)
    real = os.replace

    def spoil(source, target):
        real(source, target)
        if str(target).endswith("weights.safetensors"):
            data = target.read_bytes()
            target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(os, "replace", spoil)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        begun(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"] and holds(load(tmp_path / "step-00000001"), 1)


def test_a_file_that_may_not_grow_is_told(tmp_path):
    """A true error of the system, at every size."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    begun(tmp_path, 1)
    largest = max(file.stat().st_size for file in (tmp_path / "step-00000001").iterdir())
    old, was = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for most in range(0, largest, 37):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
            with pytest.raises(InputError, match="File too large; raise the limit"):
                begun(tmp_path, 2)
            assert names(tmp_path) == ["step-00000001"] and holds(latest(tmp_path), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, was)
    begun(tmp_path, 2)
