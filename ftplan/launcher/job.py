"""`TrainJob`: everything a training process needs, in one JSON file, and nothing it has to guess.

Light to import. The parent writes it as ``job.json``; every rank reads the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ftplan.errors import InputError
from ftplan.launcher.events import RankMemory
from ftplan.launcher.records import RunDir
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.launcher.timeouts import LEAST_SECONDS
from ftplan.results import Basis, Measured
from ftplan.spec import DEFAULT_MARGIN, PositiveInt, RunConfig, Spec

FormChoice = Literal["auto", "alpaca", "sharegpt", "chat", "prompt-completion", "text"]
SourceKind = Literal["config", "random", "folder", "hub"]
DeviceKind = Literal["cpu", "cuda"]


class Source(Spec):
    """Where a model or tokenizer comes from.

    ``config``: a folder with a config.json; the weights are random, drawn with the job's seed as its class draws them.
    ``random``: the same folder; the weights are filled in where they train, which takes seconds for any size, but are
    others on other devices. ``folder``: a local model folder. ``hub``: a hub id, for a machine that is online.
    """

    kind: SourceKind
    location: str = Field(min_length=1, description="a path, or a hub id")

    def absolute(self) -> Self:
        """The same source, whatever the working directory will be."""
        return self if self.kind == "hub" else self.model_copy(update={"location": _absolute(self.location, "model")})


class DescribedSet(Spec):
    """A data set as an entry of LLaMA-Factory's ``dataset_info.json`` describes it, with its defaults spelled out.

    The rows are in local files or in a data set of the hub. ``prompt`` to ``messages`` name the keys of a row, None for
    what a row does not have; the tags are the keys of a turn and what the roles are called there.
    """

    name: str = Field(min_length=1)
    paths: tuple[str, ...] = Field(default=(), strict=False)
    hub: str | None = Field(default=None, min_length=1)
    hub_subset: str | None = None
    hub_split: str = "train"
    hub_folder: str | None = None
    num_samples: PositiveInt | None = Field(default=None, description="rows to draw, with repeats if there are fewer")
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    system: str | None = None
    messages: str | None = "conversations"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    system_tag: str | None = "system"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.paths) == (self.hub is not None):
            raise ValueError("a described set is in paths or on the hub: give one of the two")
        return self

    def absolute(self) -> Self:
        """The same set, whatever the working directory will be."""
        return self.model_copy(update={"paths": _all_absolute(self.paths)})


class DataSource(Spec):
    """The training data: local files, one data set of the hub, sets that a file describes, or synthetic rows.

    ``form`` is that of files and of the hub's set; described sets say their own.
    """

    paths: tuple[str, ...] = Field(default=(), strict=False)
    hub: str | None = Field(default=None, min_length=1, description="a data set id, for a machine that is online")
    hub_split: str = "train"
    described: tuple[DescribedSet, ...] = Field(default=(), strict=False)
    synthetic: bool = Field(default=False, description="random tokens of each rank, every row of the planned length")
    form: FormChoice = "auto"
    skip_bad_rows: bool = Field(default=False, description="train on the other rows where some cannot be used")
    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0, description="part of the rows held out for evaluation")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.paths) + (self.hub is not None) + bool(self.described) + self.synthetic != 1:
            raise ValueError(
                "data comes from paths, from the hub, from described sets or is synthetic: give one of them"
            )
        return self

    def absolute(self) -> Self:
        """The same data, whatever the working directory will be."""
        changed: dict[str, object] = {
            "paths": _all_absolute(self.paths),
            "described": tuple(one.absolute() for one in self.described),
        }
        return self.model_copy(update=changed)

    @property
    def hub_sets(self) -> tuple[DescribedSet, ...]:
        """What of it is on the hub."""
        if self.hub is not None:
            return (DescribedSet(name=self.hub, hub=self.hub, hub_split=self.hub_split),)
        return tuple(one for one in self.described if one.hub is not None)


class TrainJob(Spec):
    """One training run: the configuration, how many processes, the data and the hyperparameters.

    One of ``max_steps`` (optimizer steps) and ``epochs`` is given. ``save_total_limit`` is how many complete
    checkpoints are kept; with ``save_steps`` None there are none. ``threads_per_process`` is for the CPU libraries of
    each rank. ``cap_bytes`` is what a process may take of its device in all, as if it were a smaller one.

    ``predicted`` is the worst rank's, ``predicted_ranks`` each one's. Model FLOPs of a token are
    ``model_flops_per_token``, and ``score_flops_per_token`` for each token of the row it is in;
    ``peak_flops_per_second`` is the dense peak of all ranks' devices (`ftplan.estimators.model_flops`). They are None
    where they are unknown. ``trackers`` are names of `ftplan.launcher.trackers`, beside TensorBoard.
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
    chat_template: str | None = Field(
        default=None, description="a name of `chat_templates`, in place of the tokenizer's"
    )
    data_cache: str | None = Field(default=None, description="folder for tokenized data; None keeps none")
    max_steps: PositiveInt | None = None
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    lr_scheduler: str = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    seed: int = 42
    logging_steps: PositiveInt = 1
    save_steps: PositiveInt | None = 100
    save_total_limit: PositiveInt = 2
    threads_per_process: PositiveInt = 1
    cap_bytes: Annotated[int, Field(gt=0)] | None = None
    margin: float = Field(default=DEFAULT_MARGIN, ge=0, lt=0.5, description="part of each card kept free")
    tensorboard: bool = True
    resume: bool = False
    universal_checkpoint: str | None = Field(
        default=None, description="where to go on from if DeepSpeed's checkpoint was made by another number of ranks"
    )
    trackers: tuple[str, ...] = Field(default=(), strict=False)
    count_flops: bool = False
    profile: bool = False
    rendezvous: Rendezvous | None = Field(default=None, description="how several machines meet, as this one knows it")
    timeout_seconds: PositiveInt = Field(default=LEAST_SECONDS, description="how long a rank waits for the others")
    cache_dir: str | None = Field(default=None, min_length=1, description="for what libraries download and compile")
    engine_env: str | None = Field(
        default=None, min_length=1, description="environment of LLaMA-Factory, whose loop then trains; None: our own"
    )
    predicted: Measured = Measured()
    predicted_ranks: tuple[RankMemory, ...] = Field(default=(), strict=False)
    model_flops_per_token: float | None = Field(default=None, ge=0)
    score_flops_per_token: float | None = Field(default=None, ge=0)
    peak_flops_per_second: float | None = Field(default=None, gt=0)
    basis: Basis = Field(default=Basis(), description="what the prediction rests on")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give max_steps or epochs, one of the two")
        return self

    @model_validator(mode="after")
    def _one_instrument(self) -> Self:
        if self.count_flops and self.profile:
            raise ValueError("count_flops and profile disturb each other: ask for one of the two")
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
                "run_dir": _absolute(self.run_dir, "run_dir"),
                "model": self.model.absolute(),
                "tokenizer": self.tokenizer.absolute(),
                "data": self.data.absolute(),
                "data_cache": _absolute(self.data_cache, "data_cache") if self.data_cache else None,
                "cache_dir": _absolute(self.cache_dir, "cache_dir") if self.cache_dir else None,
                "engine_env": _absolute(self.engine_env, "engine_env") if self.engine_env else None,
            }
        )

    def spread_over(self, world_size: int) -> Self:
        """The same job on another number of ranks, with the same global batch; raises InputError if it cannot be."""
        accumulation, rest = divmod(self.global_batch, self.config.micro_batch * world_size)
        if rest or not accumulation:
            raise InputError(
                f"a global batch of {self.global_batch} is no multiple of {world_size} processes with a micro-batch of "
                f"{self.config.micro_batch}",
                hint="choose a global batch that every number of nodes divides",
                field="nodes",
            )
        config = self.config.model_copy(update={"accumulation": accumulation})
        return self.model_copy(update={"config": config, "world_size": world_size})

    def model_flops(self, tokens: int, token_pairs: int) -> float | None:
        """Model FLOPs of ``tokens``; ``token_pairs`` is the sum of their rows' lengths. None where unknown."""
        if self.model_flops_per_token is None or self.score_flops_per_token is None:
            return None
        return tokens * self.model_flops_per_token + token_pairs * self.score_flops_per_token

    def mfu(self, tokens: int, token_pairs: int, seconds: float) -> float | None:
        """Model FLOPs utilisation, 0 to 1, of ranks that trained so many tokens in ``seconds``; None where unknown."""
        flops = self.model_flops(tokens, token_pairs)
        if flops is None or self.peak_flops_per_second is None:
            return None
        return flops / seconds / self.peak_flops_per_second

    def prediction_of(self, rank: int) -> RankMemory | None:
        """What ``rank`` should take at most; None where the prediction is for another number of ranks."""
        if not self.predicted_ranks:
            worst = self.predicted
            return RankMemory(
                rank, worst.peak_allocated_bytes, worst.peak_reserved_bytes, worst.peak_process_bytes, None
            )
        return self.predicted_ranks[rank] if len(self.predicted_ranks) == self.world_size else None

    @property
    def nodes(self) -> int:
        """Machines the ranks are spread over."""
        return self.world_size // self.nproc_per_node

    @property
    def folder(self) -> RunDir:
        """The run's folder, as this machine uses it."""
        return RunDir(Path(self.run_dir), self.rendezvous.node_rank if self.rendezvous else 0)


def _all_absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_absolute(path, "data") for path in paths)


def _absolute(path: str, field: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise InputError(f"{path}: nobody of that name has a home folder here", field=field) from error
