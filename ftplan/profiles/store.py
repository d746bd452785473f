"""Reading and writing the user's data folder: calibrations, and the runs that finished."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import append_line, write_atomic
from ftplan.profiles.calibration import Calibration, Kept, RecordedRun
from ftplan.profiles.data_folder import OTHER_FOLDER, calibration_file, data_folder, is_anything_kept, runs_file
from ftplan.results import from_json, to_json, to_jsonable

NEWEST_BYTES: Final = 16 * 2**10
"""Plans go by the runs in this much of the end of the file, about thirty; reading it takes a millisecond."""

RUN_STARTS: Final = b'{"run_id":'
"""How each line of a run begins: one that begins so and is no JSON was cut short by a kill."""


def load() -> Kept:
    """What is kept; raises InputError if a file cannot be read, or holds anything else."""
    return Kept(_calibrations(), tuple(_runs())) if is_anything_kept() else Kept()


def require_writable() -> None:
    """Make the folder; raises InputError if that, or writing to it, is impossible."""
    folder = data_folder()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def keep_calibration(calibration: Calibration) -> None:
    """Keep ``calibration``, in the place of an earlier one with the same device, driver and torch."""
    others = (one for one in _calibrations() if one.key != calibration.key)
    with _writing(calibration_file()):
        write_atomic(calibration_file(), to_json((*others, calibration)))


def keep_run(run: RecordedRun) -> None:
    """Add ``run`` to those that are kept; raises InputError if it cannot be written."""
    with _writing(runs_file()):
        append_line(runs_file(), json.dumps(to_jsonable(run), ensure_ascii=False))


def reset() -> tuple[Path, ...]:
    """Remove all that is kept, readable or not; returns the files that were there."""
    there = [file for file in (calibration_file(), runs_file()) if file.exists()]
    for file in there:
        try:
            file.unlink()
        except OSError as error:
            raise InputError(f"cannot remove {file}: {error.strerror}", field="reset") from error
    return tuple(there)


def _calibrations() -> tuple[Calibration, ...]:
    file = calibration_file()
    content = _end(file, None)
    if not content:
        return ()
    try:
        return from_json(tuple[Calibration, ...], content)
    except ValueError as error:
        raise _foreign(file) from error


def _runs() -> Iterator[RecordedRun]:
    file = runs_file()
    for line in _end(file, NEWEST_BYTES).splitlines():
        try:
            yield from_json(RecordedRun, line)
        except ValueError as error:
            if line and not _is_torn(line):
                raise _foreign(file) from error


def _is_torn(line: bytes) -> bool:
    """Whether ``line`` is the beginning of a run's, and no more."""
    if not (line.startswith(RUN_STARTS) or RUN_STARTS.startswith(line)):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _end(file: Path, size_bytes: int | None) -> bytes:
    """Whole lines in the last bytes of ``file``, or all of it; nothing if there is none."""
    try:
        with file.open("rb") as opened:
            if size_bytes is not None and os.fstat(opened.fileno()).st_size > size_bytes:
                opened.seek(-size_bytes, os.SEEK_END)
                opened.readline()
            return opened.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", hint=OTHER_FOLDER, field="calibration") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What cannot be written is the user's matter."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", hint=OTHER_FOLDER, field="calibration") from error


def _foreign(file: Path) -> InputError:
    return InputError(
        f"{file} is not what this version of ftplan keeps there",
        hint="ftplan calibrate --reset removes it",
        field="calibration",
    )
