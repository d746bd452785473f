"""One configuration that is checked, with all that it takes to ask about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.sources import Source
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import is_catalogued
from ftplan.spec import Inventory, RunConfig

UNCHANGED_RATE: Final = 1e-4
"""Any one rate, so that what is written before and after a fix does not differ by it."""


@dataclass(frozen=True)
class Case:
    """What the files say (``part``), what that makes (``config``), and on what it runs.

    ``inventory`` is the part of the devices that takes part, ``was`` what is known of an earlier run.
    """

    source: Source
    files: Files
    part: Partial
    config: RunConfig
    model: ModelProfile
    cluster: Cluster
    inventory: Inventory
    margin: float
    was: Mapping[str, Any]

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return 1 if self.config.sharding == "none" else self.cluster.world_size

    @property
    def global_batch(self) -> int:
        """Samples of one step."""
        return self.config.micro_batch * self.config.accumulation * self.ranks

    def named(self, config: RunConfig) -> RunConfig:
        """``config`` under its model's name in the catalogue, if it has one: formats look for no other then."""
        if is_catalogued(config.model) or not is_catalogued(self.model.id):
            return config
        return config.model_copy(update={"model": self.model.id})

    @property
    def target(self) -> Target:
        """What an edited configuration is for; its learning rate stays the user's own."""
        nodes = self.cluster.nodes
        return Target(nodes=len(nodes), per_node=len(nodes[0].gpus), learning_rate=UNCHANGED_RATE)
