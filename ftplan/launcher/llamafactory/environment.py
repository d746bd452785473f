"""The environment that LLaMA-Factory is installed in: its programs and releases, looked at without starting it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from ftplan.errors import InputError

PACKAGES: Final = (
    *("llamafactory", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("bitsandbytes", "deepspeed"),
)


@dataclass(frozen=True, slots=True)
class FactoryEnvironment:
    """A virtual or conda environment, by its folder."""

    root: Path

    @property
    def programs(self) -> Path:
        """Where its programs are."""
        return self.root / "bin"

    def program(self, name: str) -> str:
        """The path of a program; raises InputError if the environment has none of that name."""
        path = self.programs / name
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(
                f"no {name} in {self.programs}",
                hint="--engine-env is the folder of the environment that LLaMA-Factory is installed in: "
                "python -m venv DIR; DIR/bin/pip install llamafactory",
                field="engine_env",
            )
        return str(path)

    def versions(self) -> dict[str, str]:
        """Releases of what a run depends on, by package."""
        folders = [str(path) for path in self.root.glob("lib/python3*/site-packages")]
        found = {each.name.lower(): each.version for each in metadata.distributions(path=folders)}
        return {name: found[name] for name in PACKAGES if name in found}

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """What its processes need: its own programs first, because `llamafactory-cli` starts torchrun by name.

        Modules of the environment that ftplan runs in must not come before its own.
        """
        path = os.pathsep.join(filter(None, (str(self.programs), inherited.get("PATH", ""))))
        return {"PATH": path, "VIRTUAL_ENV": str(self.root), "PYTHONPATH": "", "PYTHONHOME": ""}
