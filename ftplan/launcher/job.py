"""`TrainJob`: everything a training process needs, in one JSON file, and nothing it has to guess.

Light to import. The parent writes it as ``job.json``; every rank reads the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ftplan.results import Basis, Measured
from ftplan.spec import PositiveInt, RunConfig, Spec

DataForm = Literal["alpaca", "sharegpt", "chat", "prompt-completion", "text"]
FormChoice = Literal["auto", "alpaca", "sharegpt", "chat", "prompt-completion", "text"]
SourceKind = Literal["config", "folder", "hub"]
DeviceKind = Literal["cpu", "cuda"]

NOT_MEASURED: Final = Measured(
    peak_allocated_bytes=None,
    peak_reserved_bytes=None,
    peak_process_bytes=None,
    host_bytes=None,
    step_seconds=None,
    tokens_per_second=None,
)
"""Every figure unknown."""


class Source(Spec):
    """Where a model or tokenizer comes from.

    ``config``: a folder with a config.json; the weights are random, drawn with the job's seed. ``folder``: a local
    model folder. ``hub``: a hub id, for a machine that is online.
    """

    kind: SourceKind
    location: str = Field(min_length=1, description="a path, or a hub id")

    def absolute(self) -> Self:
        """The same source, whatever the working directory will be."""
        return self if self.kind == "hub" else self.model_copy(update={"location": _absolute(self.location)})


class DataSource(Spec):
    """The training data: local JSON or JSON Lines files, or one data set of the hub."""

    paths: tuple[str, ...] = Field(default=(), strict=False)
    hub: str | None = Field(default=None, min_length=1, description="a data set id, for a machine that is online")
    hub_split: str = "train"
    form: FormChoice = "auto"
    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0, description="part of the rows held out for evaluation")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.paths) == (self.hub is not None):
            raise ValueError("data comes from paths or from the hub: give one of the two")
        return self

    def absolute(self) -> Self:
        """The same data, whatever the working directory will be."""
        return self.model_copy(update={"paths": tuple(_absolute(path) for path in self.paths)})


class TrainJob(Spec):
    """One training run: the configuration, how many processes, the data and the hyperparameters.

    One of ``max_steps`` (optimizer steps) and ``epochs`` is given. ``save_total_limit`` is how many complete
    checkpoints are kept. ``threads_per_process`` is for the CPU libraries of each rank.
    """

    run_id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    run_dir: str = Field(min_length=1)
    config: RunConfig
    inventory: str
    global_batch: PositiveInt
    world_size: PositiveInt
    nproc_per_node: PositiveInt
    device: DeviceKind
    model: Source
    tokenizer: Source
    data: DataSource
    max_steps: PositiveInt | None = None
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    lr_scheduler: str = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    seed: int = 42
    logging_steps: PositiveInt = 1
    save_steps: PositiveInt = 100
    save_total_limit: PositiveInt = 2
    threads_per_process: PositiveInt = 1
    tensorboard: bool = True
    resume: bool = False
    universal_checkpoint: str | None = Field(
        default=None, description="where to go on from if DeepSpeed's checkpoint was made by another number of ranks"
    )
    predicted: Measured = NOT_MEASURED
    basis: Basis = Field(default=Basis(), description="what the prediction rests on")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give max_steps or epochs, one of the two")
        return self

    @model_validator(mode="after")
    def _batch_and_ranks(self) -> Self:
        if self.world_size % self.nproc_per_node:
            raise ValueError("world_size is not a multiple of nproc_per_node")
        per_rank = self.config.micro_batch * self.config.accumulation
        if per_rank * self.world_size != self.global_batch:
            raise ValueError(
                f"micro_batch x accumulation x world_size is {per_rank * self.world_size}, "
                f"not the global batch of {self.global_batch}"
            )
        return self

    def absolute(self) -> Self:
        """The same job with absolute paths: its file can then be used from any working directory."""
        return self.model_copy(
            update={
                "run_dir": _absolute(self.run_dir),
                "model": self.model.absolute(),
                "tokenizer": self.tokenizer.absolute(),
                "data": self.data.absolute(),
            }
        )

    @property
    def nodes(self) -> int:
        """Machines the ranks are spread over."""
        return self.world_size // self.nproc_per_node


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
