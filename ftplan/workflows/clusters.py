"""Inventories as this user's machine knows them: with calibrated figures and what recorded runs taught."""

from __future__ import annotations

from ftplan.planner.inventory import resolve_inventory
from ftplan.profiles import store
from ftplan.profiles.history import with_history
from ftplan.profiles.overlay import calibrated
from ftplan.profiles.schema import Cluster
from ftplan.spec import Inventory


def known_cluster(inventory: Inventory) -> Cluster:
    """The cluster of ``inventory``; raises InputError if what is kept about its devices cannot be read."""
    kept = store.load()
    return with_history(calibrated(resolve_inventory(inventory), kept), kept.runs)
