"""The user's data folder: what ``ftplan calibrate`` measured, and the runs that finished.

::

    calibration.json    a `Calibration` for each device, driver and torch
    runs.jsonl          a `RecordedRun` a line, in the order they finished
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import append_line, write_atomic
from ftplan.profiles.calibration import Calibration, Kept, RecordedRun
from ftplan.results import from_json, to_json, to_jsonable

NEWEST_BYTES: Final = 16 * 2**10
"""Plans go by the runs in this much of the end of the file, about thirty; reading it takes a millisecond."""

OTHER_FOLDER: Final = "FTPLAN_DATA names another folder"

RUN_STARTS: Final = b'{"run_id":'
"""How each line of a run begins: one that begins so and is no JSON was cut short by a kill."""


def data_folder() -> Path:
    """Where it is kept: ``FTPLAN_DATA``, or ``ftplan`` in the user's data folder; InputError without a home."""
    given, share = os.environ.get("FTPLAN_DATA"), os.environ.get("XDG_DATA_HOME")
    if given:
        return Path(given)
    try:
        return Path(share or Path.home() / ".local/share") / "ftplan"
    except RuntimeError as error:
        raise InputError("no home folder to keep anything in", hint=OTHER_FOLDER, field="calibration") from error


def load() -> Kept:
    """What is kept; raises InputError if a file cannot be read, or holds anything else."""
    try:
        data_folder()
    except InputError:
        return Kept()  # who has no home has nothing in it
    return Kept(_calibrations(), tuple(_runs()))


def require_writable() -> None:
    """Make the folder; raises InputError if that, or writing to it, is impossible."""
    folder = data_folder()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def keep_calibration(calibration: Calibration) -> None:
    """Keep ``calibration``, in the place of an earlier one with the same device, driver and torch."""
    others = (one for one in _calibrations() if one.key != calibration.key)
    with _writing(_calibration_file()):
        write_atomic(_calibration_file(), to_json((*others, calibration)))


def keep_run(run: RecordedRun) -> None:
    """Add ``run`` to those that are kept; raises InputError if it cannot be written."""
    with _writing(_runs_file()):
        append_line(_runs_file(), json.dumps(to_jsonable(run), ensure_ascii=False))


def reset() -> tuple[Path, ...]:
    """Remove all that is kept, readable or not; returns the files that were there."""
    there = [file for file in (_calibration_file(), _runs_file()) if file.exists()]
    for file in there:
        try:
            file.unlink()
        except OSError as error:
            raise InputError(f"cannot remove {file}: {error.strerror}", field="reset") from error
    return tuple(there)


def _calibration_file() -> Path:
    return data_folder() / "calibration.json"


def _runs_file() -> Path:
    return data_folder() / "runs.jsonl"


def _calibrations() -> tuple[Calibration, ...]:
    file = _calibration_file()
    content = _end(file, None)
    if not content:
        return ()
    try:
        return from_json(tuple[Calibration, ...], content)
    except ValueError as error:
        raise _foreign(file) from error


def _runs() -> Iterator[RecordedRun]:
    file = _runs_file()
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
