from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftplan.errors import DataError
from ftplan.launcher.events import Failed
from ftplan.launcher.failures import failed, kind_of, message_of
from ftplan.launcher.merge_job import from_line, to_line
from ftplan.launcher.train import task


class OutOfMemoryError(RuntimeError):
    """Named like torch's, which the parent of this test does not import."""


class DistBackendError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out_of_host_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "out_of_host_memory"),
        (MemoryError(), "out_of_host_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (RuntimeError("inline_container.cc:664: PytorchStreamWriter failed writing file"), "disk_full"),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"), "lost_rank"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "lost_rank"),
        (RuntimeError("Watchdog caught collective operation timeout: timed out after 1800000ms"), "lost_rank"),
        (OSError(errno.ENOENT, "No such file"), "error"),
        (KeyError("input_ids"), "error"),
        (DataError("no rows"), "input"),
    ],
)  # fmt: skip
def test_what_a_run_died_of(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind
    assert failed(3, error).kind == kind
    assert failed(3, error).rank == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("CUDA out of memory"), ("out_of_memory", "CUDA out of memory", "this needs more memory")),
        (
            RuntimeError("can't allocate memory"),
            ("out_of_host_memory", "can't allocate memory", "this needs more memory"),
        ),
        (OSError(errno.ENOSPC, "full"), ("disk_full", "[Errno 28] full", "free some space")),
        (DataError("no rows", hint="give some"), ("input", "no rows", "give some")),
        (KeyError("x"), ("error", "KeyError: 'x'", "")),
    ],
)
def test_what_a_task_died_of(
    error: Exception, expected: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job: bytes, write: task.Write) -> None:
        raise error

    monkeypatch.setattr(task, "Guard", lambda: SimpleNamespace(start=lambda: None))
    (tmp_path / "job").touch()
    assert task.run_worker([str(tmp_path / "job"), str(tmp_path / "told")], work, to_line) == 1
    told = from_line((tmp_path / "told").read_bytes())
    assert isinstance(told, Failed)
    assert (told.kind, told.message) == expected[:2]
    assert told.hint.startswith(expected[2])


def test_a_user_is_told_what_to_do() -> None:
    assert "smaller micro-batch" in failed(0, OutOfMemoryError("x")).hint
    assert failed(0, DataError("no rows", hint="give some")).hint == "give some"
    assert "--keep" in failed(0, OSError(errno.ENOSPC, "No space left on device")).hint


def test_a_message_is_one_short_line() -> None:
    assert message_of(RuntimeError("a\n\n b\nc\nd")) == "a b c"
    assert message_of(ValueError()) == "ValueError()"
    assert len(message_of(RuntimeError("x" * 5000))) <= 600
