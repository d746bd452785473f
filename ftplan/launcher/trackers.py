"""Experiment trackers that transformers reports to, by its names, and whether they can be used here. Light."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.launcher.job import TrainJob

TENSORBOARD: Final = "tensorboard"
KUBEFLOW: Final = "kubeflow"
KUBEFLOW_SERVER: Final = "KUBEFLOW_TRAINER_SERVER_URL"

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    KUBEFLOW: (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    TENSORBOARD: (TENSORBOARD,),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Packages that each needs: ``is_…_available`` in transformers 5.23, integrations/integration_utils.py."""


def check_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that is no tracker's."""
    for name in names:
        if name not in PACKAGES:
            raise InputError(f"unknown tracker {name!r}", hint=f"one of {', '.join(sorted(PACKAGES))}", field="track")


def check_installed(names: Iterable[str]) -> None:
    """Raise InputError for a tracker whose package is not installed, or that is not set up."""
    for name in names:
        missing = [package for package in PACKAGES[name] if find_spec(package) is None]
        if missing:
            hint = f"install {', '.join(missing)}, or leave --track {name} out"
            raise InputError(f"tracker {name} needs {', '.join(missing)}", hint=hint, field="track")
    if KUBEFLOW in names and not os.environ.get(KUBEFLOW_SERVER):
        raise InputError(f"tracker {KUBEFLOW} needs the variable {KUBEFLOW_SERVER}", field="track")


def reported_to(job: TrainJob) -> list[str]:
    """The trackers of ``job``: TensorBoard wherever it is installed, and those asked for."""
    always = [TENSORBOARD] if job.tensorboard and find_spec(TENSORBOARD) is not None else []
    return list(dict.fromkeys([*always, *job.trackers]))


def environment(job: TrainJob) -> dict[str, str]:
    """Where trackers keep their files: in the run's folder, and not wherever the launch happened.

    Since transformers 5.15 a variable is the only way to say where TensorBoard's go.
    """
    variables = {"TENSORBOARD_LOGGING_DIR": str(Path(job.run_dir) / TENSORBOARD)}
    return variables | ({"WANDB_DIR": job.run_dir} if "wandb" in job.trackers else {})
