"""SkyPilot: a task's YAML around a command, and the command inside such a file with its devices."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.errors import CannotExpressError, ConfigFileError, InputError
from ftplan.launcher.formats.cluster import Cluster, Wrapped, refuse, require_name
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.given import LAUNCH_FILE, Target
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.settings import document_settings
from ftplan.profiles.gpus import load_gpu

NAME: Final = "skypilot"
MAIN: Final = "task.yaml"
RANK: Final = "SKYPILOT_NODE_RANK"
_NAME: Final = re.compile(r"[A-Za-z0-9]+(?:[._-]{1,2}[A-Za-z0-9]+)*")

CARDS: Final[Mapping[str, str]] = {
    "A10": "A10",
    "A100-40GB-PCIe": "A100",
    "A100-40GB-SXM": "A100",
    "A100-80GB-PCIe": "A100-80GB",
    "A100-80GB-SXM": "A100-80GB",
    "A10G": "A10G",
    "A16": "A16",
    "A30": "A30",
    "A40": "A40",
    "A4000": "A4000",
    "A4500": "RTXA4500",
    "A5000": "RTXA5000",
    "A6000": "RTXA6000",
    "A800-80GB-PCIe": "A800",
    "A800-80GB-SXM": "A800",
    "B200": "B200",
    "B300": "B300",
    "GB200": "GB200",
    "GB300": "GB300",
    "GH200-96GB": "GH200",
    "GTX1660Super": "GTX1660S",
    "H100-NVL": "H100-NVL",
    "H100-PCIe": "H100",
    "H100-SXM": "H100",
    "H200-NVL": "H200",
    "H200-SXM": "H200",
    "L4": "L4",
    "L40": "L40",
    "L40S": "L40S",
    "MI300X": "MI300X",
    "P100-16GB": "P100",
    "P100-16GB-SXM": "P100",
    "P4": "P4",
    "P40": "P40",
    "QuadroRTX6000": "RTX6000",
    "RTX3060": "RTX3060",
    "RTX3070": "RTX3070",
    "RTX3080": "RTX3080",
    "RTX3090": "RTX3090",
    "RTX4000Ada": "RTX4000-Ada",
    "RTX4090": "RTX4090",
    "RTX5060": "RTX5060",
    "RTX5090": "RTX5090",
    "RTX6000Ada": "RTX6000-Ada",
    "RTXPRO6000-Blackwell": "RTXPRO6000WS",
    "RTXPRO6000-Blackwell-Server": "RTXPRO6000",
    "T4": "T4",
    "V100-16GB-PCIe": "V100",
    "V100-16GB-SXM": "V100",
    "V100-32GB-PCIe": "V100-32GB",
    "V100-32GB-SXM": "V100-32GB",
}
"""SkyPilot's name of a card: it has one for each size of memory, mostly (skypilot-catalog v8 common/accelerators.csv;
sky 0.14.1 utils/gpu_names.py, catalog/data_fetchers)."""
_READ: Final[Mapping[str, str]] = {
    "A100": "A100-40GB-SXM",
    "A100-80GB": "A100-80GB-SXM",
    "A800": "A800-80GB-SXM",
    "H100": "H100-SXM",
    "H200": "H200-SXM",
    "P100": "P100-16GB",
    "RTX6000": "QuadroRTX6000",
    "V100": "V100-16GB-SXM",
    "V100-32GB": "V100-32GB-SXM",
}
"""What such a name mostly stands for, where it stands for several cards."""


def accelerator(gpu_name: str) -> str:
    """SkyPilot's name of the card; raises CannotExpressError for one that it does not know."""
    if not gpu_name:
        raise InputError("SkyPilot chooses machines by the card's name", hint="name it in --gpus", field="gpus")
    name = "cpu" if gpu_name == "cpu" else load_gpu(gpu_name).name
    if name not in CARDS:
        hint = f"SkyPilot knows {', '.join(sorted(set(CARDS.values())))}"
        raise CannotExpressError("SkyPilot", {"gpus": name}, hint=hint)
    return CARDS[name]


def task(cluster: Cluster, target: Target) -> dict[str, Any]:
    """The task, whose folder holds `LAUNCH_FILE`, which every node runs."""
    refuse("SkyPilot", cluster, ("account", "partition", "qos", "namespace"), hint="leave them out")
    refuse("SkyPilot", cluster, ("hours",), hint="leave it out: sky launch --down ends the machines with the task")
    require_name(cluster.name, _NAME, 100, "letters and digits, with . _ - between them")
    found: dict[str, Any] = {
        "name": cluster.name,
        "resources": _resources(cluster, target),
        "num_nodes": target.nodes,
        "workdir": ".",
    }
    if cluster.storage:
        found["file_mounts"] = {_mount(target): {"source": _bucket(cluster.storage), "mode": "MOUNT"}}
    if cluster.packages:
        found["setup"] = f"pip install {shlex.join(cluster.packages)}\n"
    found["run"] = "\n".join(_run(cluster, target)) + "\n"
    return found


def _resources(cluster: Cluster, target: Target) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accelerators": f"{accelerator(cluster.gpu_name)}:{target.per_node}",
        "cpus": f"{cluster.cpus_per_gpu * target.per_node}+",
    }
    if cluster.host_gib is not None:
        found["memory"] = f"{cluster.host_gib}+"
    if cluster.spot:
        found["use_spot"] = True
    if cluster.image:
        found["image_id"] = f"docker:{cluster.image}"
    return found


def _mount(target: Target) -> str:
    """Where the bucket appears: SkyPilot copies the folder of the task, so that the output cannot lie inside it."""
    folder = target.output_dir
    if not folder.startswith("/") or "$" in folder or not folder.strip("/"):
        hint = "an absolute path without variables, such as /outputs"
        raise InputError(f"a bucket cannot be mounted at {folder[:80]!r}", hint=hint, field="output_dir")
    return folder


def _bucket(url: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+://[A-Za-z0-9][A-Za-z0-9._/-]*", url):
        raise InputError(f"{url[:80]!r} is no bucket", hint="for example s3://name", field="storage")
    return url


def _run(cluster: Cluster, target: Target) -> Iterator[str]:
    yield "set -euo pipefail"
    if target.nodes > 1:
        yield f"export MASTER_ADDR=\"${{SKYPILOT_NODE_IPS%%$'\\n'*}}\" MASTER_PORT={cluster.port}"
    yield f"bash {LAUNCH_FILE}"


def is_skypilot(data: Mapping[str, Any]) -> bool:
    """Whether a file with this content is a SkyPilot task that runs something."""
    return isinstance(data.get("run"), str) and ("resources" in data or "num_nodes" in data or "setup" in data)


def read_skypilot(document: Document) -> Wrapped:
    """The script in ``run``, with the nodes and devices that the task asks for."""
    settings = document_settings(document, nested=True)
    if not isinstance(document.data.get("run"), str):
        raise ConfigFileError(f"{document.name} runs nothing", file=document.name, field="run")
    nodes = settings.integer("num_nodes", 1, least=1)
    device, per_node = _accelerators(document)
    given = document.data.get("envs")
    environment = {str(name): str(value) for name, value in given.items()} if isinstance(given, Mapping) else {}
    environment["SKYPILOT_NUM_NODES"] = str(nodes)
    if per_node is not None:
        environment["SKYPILOT_NUM_GPUS_PER_NODE"] = str(per_node)
    return Wrapped(
        str(document.data["run"]),
        Shape(nodes, per_node),
        environment,
        document.entries["run"].line + 1,
        _READ.get(device) or next((ours for ours, theirs in CARDS.items() if theirs == device), device),
    )


def _accelerators(document: Document) -> tuple[str, int | None]:
    """The card and how many of it each node has; empty and None where several are allowed and differ."""
    resources = document.data.get("resources")
    asked = resources.get("accelerators") if isinstance(resources, Mapping) else None
    if asked is None:
        return "", None
    if isinstance(asked, Mapping):
        pairs = [str(name) if count is None else f"{name}:{count}" for name, count in asked.items()]
    else:
        pairs = [str(each) for each in (asked if isinstance(asked, list) else [asked])]
    found = [_pair(each, document) for each in pairs]
    devices = {device for device, _ in found}
    counts = {count for _, count in found}
    return devices.pop() if len(devices) == 1 else "", counts.pop() if len(counts) == 1 else None


def _pair(text: str, document: Document) -> tuple[str, int]:
    name, _, count = text.partition(":")
    if count and not (count.isascii() and count.isdecimal() and 0 < int(count) < 100_000):
        line = document.entries["resources.accelerators"].line
        message = f"{document.name}: {text[:40]!r} names no card and number"
        raise ConfigFileError(message, file=document.name, line=line, field="resources.accelerators")
    return name.strip(), int(count or 1)
