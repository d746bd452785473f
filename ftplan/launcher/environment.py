"""What a run sets in the environment of its processes, why, and what the user has set there already.

A value of the user's own goes first. Where the plan counts on another one, the plan's does, and the user is told.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ftplan.errors import InputError

NETWORK_DISKS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "fuse.juicefs", "9p", "afs"}
)
_MOUNTS: Final = Path("/proc/mounts")
_HINT: Final = "name another folder for what is downloaded and compiled: --cache-dir FOLDER"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable, its value, and why it has it; ``is_planned`` where the estimate holds with this value only."""

    name: str
    value: str
    why: str
    is_planned: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """The values that are set, why, and what of the user's was replaced."""

    values: Mapping[str, str]
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()


def settled(wanted: Iterable[Variable], environ: Mapping[str, str]) -> Settled:
    """``wanted`` beside what ``environ`` has: the user's values stay, but where the plan counts on others."""
    values: dict[str, str] = {}
    reasons: dict[str, str] = {}
    notes: list[str] = []
    for each in wanted:
        own = environ.get(each.name)
        if own is not None and own != each.value and not each.is_planned:
            values[each.name], reasons[each.name] = own, "your environment says so"
            continue
        if own is not None and own != each.value:
            notes.append(f"{each.name}={own} of your environment is replaced by {each.value}: {each.why}")
        values[each.name], reasons[each.name] = each.value, each.why
    return Settled(values, reasons, tuple(notes))


def caches(folder: str | None, *, nodes: int, home: Path, environ: Mapping[str, str]) -> tuple[Variable, ...]:
    """Where libraries keep what they download and compile.

    Their own choice, in the home folder, is left, unless the user names a ``folder`` or the home cannot be written.
    What is compiled moves to this machine's disk where several machines share the home: DeepSpeed warns that Triton's
    cache hangs there (ops/transformer/inference/triton/matmul_ext.py), and torch builds an extension under a lock file
    (utils/cpp_extension.py: ``FileBaton``) that the other machines wait for, also after its owner is gone.
    """
    if folder is not None:
        why = "--cache-dir"
        asked = (_hub(folder, why), *_compiled(folder, why))
        return (*(replace(each, is_planned=True) for each in asked), _login(environ))
    base = str(_temporary(environ))
    if not os.access(home, os.W_OK):
        why = f"{home} cannot be written"
        return (_hub(base, why), _login(environ), *_compiled(base, why))
    if nodes > 1 and (disk := disk_of(home)) in NETWORK_DISKS:
        return _compiled(base, f"the machines share {home} ({disk}), where compiling at once goes wrong")
    return ()


def make_private(wanted: Iterable[Variable], environ: Mapping[str, str]) -> None:
    """Make the folder of caches in the system's temporary one for this user alone, if ``wanted`` puts any there.

    Its name can be guessed, and what lies there is loaded as code. Raises InputError where another user could write to
    it, or it cannot be made.
    """
    folder = _temporary(environ)
    if not any(Path(value).is_relative_to(folder) for value in settled(wanted, environ).values.values()):
        return
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be a folder for caches: {error.strerror}", hint=_HINT, field="cache_dir"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(f"{folder} is not a folder that this user alone can write to", hint=_HINT, field="cache_dir")


def disk_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """The kind of file system that ``path`` is on, as Linux calls it; empty where that is not told."""
    try:
        lines = [line.split() for line in mounts.read_text("utf-8").splitlines()]
    except OSError:
        return ""
    real = path.resolve()
    on = [(Path(words[1]), words[2]) for words in lines if len(words) > 2 and real.is_relative_to(words[1])]
    return max(on, key=lambda one: len(one[0].parts), default=(Path(), ""))[1]


def _temporary(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("TMPDIR") or tempfile.gettempdir()) / f"ftplan-{os.getuid()}"


def _hub(folder: str, why: str) -> Variable:
    return Variable("HF_HOME", str(Path(folder) / "huggingface"), why)


def _login(environ: Mapping[str, str]) -> Variable:
    from ftplan.profiles.hub import token_file  # imports the network library, which most commands never need

    return Variable("HF_TOKEN_PATH", str(token_file(environ)), "the hub's login stays where it is")


def _compiled(folder: str, why: str) -> tuple[Variable, ...]:
    return (
        Variable("TRITON_CACHE_DIR", str(Path(folder) / "triton"), why),
        Variable("TORCH_EXTENSIONS_DIR", str(Path(folder) / "torch_extensions"), why),
    )
