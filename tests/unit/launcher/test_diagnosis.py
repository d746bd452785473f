from __future__ import annotations

from pathlib import Path

from ftplan.launcher.diagnosis import diagnose, tail
from ftplan.launcher.events import Failed
from ftplan.launcher.process import Outcome

LOST = Failed(0, "error", "Connection closed by peer")
MEMORY = Failed(1, "out_of_memory", "CUDA out of memory", "a smaller micro-batch")
EXIT_1 = Outcome(1, None)
TORCHRUN = """
Failures:
[1]:
  time      : 2025-01-31_12:00:00
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 11)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2025-01-31_12:00:00
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 10)
"""


def test_the_cause_before_its_consequences() -> None:
    found = diagnose([LOST, MEMORY], EXIT_1, "")
    assert found.message == "rank 1 failed: CUDA out of memory"
    assert found.hint == "a smaller micro-batch"


def test_a_killed_rank_explains_a_lost_connection() -> None:
    found = diagnose([LOST], EXIT_1, TORCHRUN.format(code=-9))
    assert found.message == "rank 1 was killed by SIGKILL"
    assert "host runs out of memory" in found.hint


def test_what_a_rank_says_explains_more_than_its_end() -> None:
    assert diagnose([MEMORY], EXIT_1, TORCHRUN.format(code=-6)).message == "rank 1 failed: CUDA out of memory"


def test_ranks_ended_by_torchrun_itself_are_no_cause() -> None:
    assert diagnose([LOST], EXIT_1, TORCHRUN.format(code=-15)).message == "rank 0 failed: Connection closed by peer"


def test_without_any_report() -> None:
    assert diagnose([], EXIT_1, "import torch\nModuleNotFoundError: No module named 'torch'\n").hint == (
        "its last words: ModuleNotFoundError: No module named 'torch'"
    )
    assert "by SIGKILL" in diagnose([], Outcome(None, 9), "").message


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert tail(log) == ""
    log.write_bytes(b"first attempt\nsecond attempt\n")
    assert tail(log, start=14) == "second attempt\n"
    log.write_bytes(b"x" * 100_000 + b"end")
    assert len(tail(log)) < 20_000
    assert tail(log).endswith("end")
