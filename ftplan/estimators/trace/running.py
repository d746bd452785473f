"""Where a trace runs: not at all if it is cached, in this process, or in a child where a library patches globally."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from ftplan.errors import FtplanError, InputError
from ftplan.estimators.trace.digest import Digest
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.profiles import data_folder
from ftplan.results import from_json, to_json

LIBRARIES: Final = ("torch", "transformers", "peft", "accelerate")
DETERMINING: Final = (*LIBRARIES, "trl", "bitsandbytes", "deepspeed", "liger-kernel")
LIGER: Final = "liger_kernel"
ZERO: Final = ("zero1", "zero2", "zero3")
ZERO_ENVIRONMENT: Final[Mapping[str, str]] = {
    "DS_ACCELERATOR": "cpu",
    "DS_IGNORE_CUDA_DETECTION": "1",
    "LOCAL_RANK": "0",
    "LOCAL_SIZE": "1",
}
CHILD: Final = (sys.executable, "-m", "ftplan.estimators.trace.worker")


def require_libraries(settings: TraceSettings) -> None:
    """Raise InputError if a library that the trace runs is not installed."""
    needed = list(LIBRARIES)
    config = settings.config
    if config.sharding in ZERO:
        needed.append("deepspeed")
    if config.kernels == "liger":
        needed.append(LIGER)
    if config.quantization != "none" or "8bit" in config.optimizer or config.optimizer.startswith("paged_"):
        needed.append("bitsandbytes")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the trace needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"pip install {_packages(missing)}, or use --estimator analytic",
            field="estimator",
        )


def _packages(missing: list[str]) -> str:
    """What to install: the extra, and Liger's kernels, which are in none."""
    wanted = ["'ftplan[train]'"] if missing != [LIGER] else []
    return " ".join([*wanted, "liger-kernel"] if LIGER in missing else wanted)


def traced(settings: TraceSettings, *, use_cache: bool = True) -> Digest:
    """The digest of ``settings``, from the cache if it was traced before with the same libraries.

    Raises InputError for what cannot be traced.
    """
    require_libraries(settings)
    file = cache_folder() / f"{_key(settings)}.json" if use_cache else None
    found = None if file is None else _read(file)
    if found is not None:
        return found
    config = settings.config
    result = _in_child(settings) if config.sharding in ZERO or config.kernels == "liger" else _here(settings)
    if file is not None:
        _write(file, to_json(result))
    return result


def cache_folder() -> Path:
    """Where digests are kept."""
    return data_folder.cache_folder() / "traces"


def _here(settings: TraceSettings) -> Digest:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells that its CPU kernels are not the fastest
    # By name: this is the one door to torch, and whoever only imports this module must not pass it.
    worker = importlib.import_module("ftplan.estimators.trace.worker")
    try:
        result: Digest = worker.digested(settings)
    except (FtplanError, AssertionError):
        raise
    except Exception as error:  # a library's, of an architecture that does what no other did
        raise _failed(f"{type(error).__name__}: {error}") from error
    return result


def _failed(what: str) -> InputError:
    return InputError(f"the trace failed: {what}", hint="use --estimator analytic", field="estimator")


def _in_child(settings: TraceSettings) -> Digest:
    environment = {**os.environ, **_environment(settings)}
    done = subprocess.run(CHILD, input=to_json(settings).encode(), capture_output=True, env=environment, check=False)
    if done.returncode != 0 or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise _failed(lines[-1])
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(**answer["error"])
    return from_json(Digest, done.stdout)


def _environment(settings: TraceSettings) -> dict[str, str]:
    """DeepSpeed reads its accelerator and rank from the environment as it is imported."""
    if settings.config.sharding not in ZERO:
        return {}
    return {**ZERO_ENVIRONMENT, "RANK": str(settings.rank), "WORLD_SIZE": str(settings.world_size)}


def _key(settings: TraceSettings) -> str:
    """A name for everything that determines the digest: settings, library versions, and this package's own code."""
    told = json.dumps([to_json(settings), _versions(), _code()], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return {name: found for name in DETERMINING if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _code() -> str:
    here = Path(__file__).parent
    files = sorted((*here.glob("*.py"), *here.parent.glob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(file: Path) -> Digest | None:
    """The digest in ``file``; None if there is none, or one that another version wrote."""
    try:
        return from_json(Digest, file.read_bytes())
    except (OSError, ValueError):
        return None


def _write(file: Path, text: str) -> None:
    """Keep ``text``, whole or not at all; where the folder cannot be written there is no cache."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            temporary.write(text)
        Path(temporary.name).replace(file)
    except OSError as error:
        print(f"note: the trace is not cached: {error}", file=sys.stderr)  # noqa: T201 - a note beside the answer
