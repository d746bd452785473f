"""Inventories as this user's machine knows them: with calibrated figures and what recorded runs taught."""

from __future__ import annotations

from ftplan.planner.inventory import resolve_inventory
from ftplan.profiles.data_folder import is_anything_kept
from ftplan.profiles.device_schema import Cluster
from ftplan.spec import Inventory


def known_cluster(inventory: Inventory) -> Cluster:
    """The cluster of ``inventory``; raises InputError if what is kept about its devices cannot be read."""
    cluster = resolve_inventory(inventory)
    if not is_anything_kept():
        return cluster
    # Ten milliseconds of imports that a plan of a user who calibrated nothing does not pay for.
    from ftplan.profiles import history, overlay, store

    kept = store.load()
    return history.with_history(overlay.calibrated(cluster, kept), kept.runs)
