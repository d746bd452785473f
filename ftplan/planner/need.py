"""Which cards a model needs: for each method and class of cards, the fewest on which there is a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ftplan.errors import BatchError, InputError
from ftplan.planner.batch import check_batch
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.planner.search import plan
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate, RejectedGroup
from ftplan.spec import Inventory, PlanRequest
from ftplan.units import GIB

CARDS: Final = ("8GB", "12GB", "16GB", "24GB", "32GB", "40GB", "48GB", "80GB", "96GB", "141GB")
"""The size classes that people own or rent."""

COUNTS: Final = (1, 2, 4, 8)
NODES: Final = (2, 4)
"""Numbers of nodes of eight that are tried after one; cards of a desktop are told for one machine only."""

DATA_CENTRE_BYTES: Final = 38 * GIB
"""Cards sold as 40 GB and more are those of servers."""

ROOMY: Final = 0.9
"""Of what needs less of a card nobody asks whether fragments leave enough of it."""

METHODS: Final = ("lora", "qlora", "full")


@dataclass(frozen=True)
class Sufficient:
    """The fewest cards of a kind on which a method has a plan; without one, the nearest miss on the most of them.

    ``dollars_per_hour`` is that of all cards together, None where one has no price.
    """

    method: str
    card: str
    inventory: str | None
    devices: int
    candidate: Candidate | None
    nearest: RejectedGroup | None
    dollars_per_hour: float | None

    @property
    def dollars_per_million_tokens(self) -> float | None:
        """What a million trained tokens cost there."""
        if self.dollars_per_hour is None or self.candidate is None or self.candidate.estimate is None:
            return None
        return self.dollars_per_hour / 3600 / self.candidate.estimate.tokens_per_second * 1e6


ClusterOf = Callable[[Inventory], Cluster]


def needs(
    request: PlanRequest, model: ModelProfile, cards: Sequence[str], most: int, cluster_of: ClusterOf
) -> Iterator[Sufficient]:
    """For each method asked for and each of ``cards``, the fewest of them (up to ``most``) that suffice.

    The inventory of ``request`` is not looked at. Raises InputError if no count can split the global batch.
    """
    for method in METHODS if request.method == "auto" else (request.method,):
        asked = request.model_copy(update={"method": method})
        for card in cards:
            yield _sufficient(asked, model, card, most, cluster_of)


def _sufficient(request: PlanRequest, model: ModelProfile, card: str, most: int, cluster_of: ClusterOf) -> Sufficient:
    nearest: RejectedGroup | None = None
    tried, refused = 0, None
    for inventory in inventories(card, most):
        asked = request.model_copy(update={"inventory": inventory})
        try:
            check_batch(asked)
        except InputError as error:
            refused = refused or error
            continue  # another number may split it
        tried += 1
        cluster = cluster_of(inventory)
        chosen = plan(asked, model, cluster, replays_from=ROOMY)
        if chosen.config is not None:
            price = _price(cluster)
            candidate = Candidate(chosen.config, chosen.estimate)
            return Sufficient(request.method, card, inventory.text, inventory.world_size, candidate, None, price)
        nearest = chosen.rejections[0] if chosen.rejections else nearest
    if not tried:
        if refused is not None and not isinstance(refused, BatchError):
            raise refused
        message = f"a global batch of {request.global_batch} splits over no number of cards up to {most}"
        raise InputError(message, hint="use a multiple of 8, such as 32", field="global_batch")
    return Sufficient(request.method, card, None, 0, None, nearest, None)


def inventories(card: str, most: int) -> Iterator[Inventory]:
    """Inventories of ``card``, fewest first; nodes of eight only for cards that servers have."""
    for count in COUNTS:
        if count <= most:
            yield parse_inventory(f"{count}x{card}")
    if resolve_inventory(parse_inventory(card)).gpus[0].memory_bytes >= DATA_CENTRE_BYTES:
        for nodes in NODES:
            if nodes * COUNTS[-1] <= most:
                yield parse_inventory(f"{nodes}x{COUNTS[-1]}x{card}")


def _price(cluster: Cluster) -> float | None:
    prices = [gpu.dollars_per_hour for gpu in cluster.gpus]
    return None if any(price is None for price in prices) else sum(price for price in prices if price is not None)
