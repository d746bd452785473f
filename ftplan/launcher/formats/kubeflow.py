"""Kubeflow Trainer: a TrainJob of the runtime torch-distributed around a command, and the command inside such a file.

The training's files travel in a ConfigMap beside the TrainJob. The controller gives every pod PET_NNODES,
PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT (kubeflow/trainer, plugins/torch/torch.go).
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.errors import ConfigFileError, InputError
from ftplan.launcher.formats.cluster import FOLDER, Cluster, Wrapped, refuse, require_name
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.given import LAUNCH_FILE, Target
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.settings import Settings, document_settings
from ftplan.profiles.gpus import load_gpu

NAME: Final = "kubeflow"
MAIN: Final = "trainjob.yaml"
CONFIG_MAP: Final = "configmap.yaml"
RANK: Final = "PET_NODE_RANK"
API: Final = "trainer.kubeflow.org/v1alpha1"
RUNTIME: Final = "torch-distributed"
SOURCE_FOLDER: Final = "/etc/ftplan"
LONGEST_NAME: Final = 50
"""Of 63: the pods' names have the number of the node behind it."""
_NAME: Final = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_CLAIM: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_TRAINER: Final = "spec.trainer"


def train_job(cluster: Cluster, target: Target) -> dict[str, Any]:
    """The TrainJob, every node of which runs `LAUNCH_FILE` in a folder of its own."""
    refuse("Kubeflow", cluster, ("account", "partition", "qos"), hint="leave them out")
    refuse("Kubeflow", cluster, ("spot",), hint="the runtime's node selector and tolerations choose the machines")
    require_name(cluster.name, _NAME, LONGEST_NAME, f"at most {LONGEST_NAME} of a-z, 0-9 and -, a letter first")
    limits = _limits(cluster, target)
    trainer: dict[str, Any] = {
        "numNodes": target.nodes,
        "numProcPerNode": target.per_node,
        **({"image": cluster.image} if cluster.image else {}),
        "command": ["bash", "-c"],
        "args": [escaped("\n".join(_run(cluster, target)) + "\n")],
        "resourcesPerNode": {"limits": limits, "requests": dict(limits)},
    }
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": API.split("/")[0], "kind": "ClusterTrainingRuntime", "name": RUNTIME},
        "trainer": trainer,
        "runtimePatches": [{"manager": "ftplan.dev/plan", "trainingRuntimeSpec": _patch(cluster, target)}],
    }
    if cluster.seconds is not None:
        spec["activeDeadlineSeconds"] = cluster.seconds
    return {"apiVersion": API, "kind": "TrainJob", "metadata": _metadata(cluster, cluster.name), "spec": spec}


def config_map(cluster: Cluster, files: Mapping[str, str]) -> dict[str, Any]:
    """The training's files as Kubernetes keeps them."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(cluster, _files_name(cluster)),
        "data": files,
    }


def _metadata(cluster: Cluster, name: str) -> dict[str, str]:
    return {"name": name, **({"namespace": cluster.namespace} if cluster.namespace else {})}


def _files_name(cluster: Cluster) -> str:
    return f"{cluster.name}-files"


def _limits(cluster: Cluster, target: Target) -> dict[str, Any]:
    is_rocm = bool(cluster.gpu_name) and cluster.gpu_name != "cpu" and load_gpu(cluster.gpu_name).kind == "rocm"
    found: dict[str, Any] = {"cpu": cluster.cpus_per_gpu * target.per_node}
    if cluster.host_gib is not None:
        found["memory"] = f"{cluster.host_gib}Gi"
    return {**found, "amd.com/gpu" if is_rocm else "nvidia.com/gpu": target.per_node}


def _run(cluster: Cluster, target: Target) -> Iterator[str]:
    yield "set -euo pipefail"
    if cluster.packages:
        yield f"pip install {shlex.join(cluster.packages)}"
    yield f"cp -L {SOURCE_FOLDER}/* {FOLDER}/"
    yield f"cd {FOLDER}"
    if target.nodes > 1:
        yield 'export MASTER_ADDR="$PET_MASTER_ADDR" MASTER_PORT="$PET_MASTER_PORT"'
    yield f"exec bash {LAUNCH_FILE}"


def _patch(cluster: Cluster, target: Target) -> dict[str, Any]:
    """The volumes of the node's container: its folder, the files, shared memory for NCCL, and what keeps the output."""
    volumes: dict[str, tuple[str, dict[str, Any]]] = {
        "folder": (FOLDER, {"emptyDir": {}}),
        "files": (SOURCE_FOLDER, {"configMap": {"name": _files_name(cluster)}}),
        "shared-memory": ("/dev/shm", {"emptyDir": {"medium": "Memory"}}),  # noqa: S108 - of the container
    }
    if cluster.storage:
        claim = {"persistentVolumeClaim": {"claimName": _claim(cluster.storage)}}
        volumes["output"] = (_output(target), claim)
    pod = {
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
        "containers": [
            {"name": "node", "volumeMounts": [{"name": name, "mountPath": at} for name, (at, _) in volumes.items()]}
        ],
    }
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def _claim(name: str) -> str:
    if len(name) > 253 or not _CLAIM.fullmatch(name):
        raise InputError(f"{name[:80]!r} is no volume claim", hint="a-z, 0-9, - and .", field="storage")
    return name


def _output(target: Target) -> str:
    path = posixpath.normpath(posixpath.join(FOLDER, target.output_dir))
    covers = (FOLDER, SOURCE_FOLDER, "/dev/shm")  # noqa: S108 - of the container
    if ":" in path or "\0" in path or any(f"{each}/".startswith(path.rstrip("/") + "/") for each in covers):
        hint = "a folder of its own, without a colon in its path"
        raise InputError(f"a volume cannot be mounted at {path[:80]!r}", hint=hint, field="output_dir")
    return path


def escaped(text: str) -> str:
    """``text`` so that Kubernetes, which fills in ``$(NAME)`` in arguments, leaves it as it is."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _unescaped(text: str) -> str:
    """An argument as a program gets it, with ``$(NAME)`` left for the shell text's own variables."""
    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", lambda found: f"${{{found[1]}}}" if found[1] else "$", text)


def is_kubeflow(data: Mapping[str, Any]) -> bool:
    """Whether a file with this content is a TrainJob."""
    return data.get("kind") == "TrainJob" and str(data.get("apiVersion", "")).startswith("trainer.kubeflow.org/")


def read_kubeflow(document: Document) -> Wrapped:
    """The command of the trainer, with the nodes and devices that the TrainJob asks for."""
    settings = document_settings(document, nested=True)
    spec = document.data.get("spec")
    trainer = spec.get("trainer") if isinstance(spec, Mapping) else None
    words = _command(trainer) if isinstance(trainer, Mapping) else []
    if not words or not isinstance(trainer, Mapping):
        hint = "the runtime's own command is not known here: state it after --"
        raise ConfigFileError(f"{document.name} names no command", file=document.name, field=_TRAINER, hint=hint)
    shape = Shape(settings.integer(f"{_TRAINER}.numNodes", 1, least=1), _processes(settings))
    is_shell = posixpath.basename(words[0]) in ("bash", "sh") and words[1:2] in (["-c"], ["-lc"]) and len(words) > 2
    text = _unescaped(words[2]) if is_shell else " ".join(_quoted(word) for word in words)
    key = f"{_TRAINER}.args" if f"{_TRAINER}.args" in document.entries else f"{_TRAINER}.command"
    return Wrapped(text, shape, _environment(trainer, shape), document.entries[key].line + 1)


def _command(trainer: Mapping[str, Any]) -> list[str]:
    lists = [trainer.get("command"), trainer.get("args")]
    return [str(word) for each in lists if isinstance(each, list) for word in each]


def _quoted(word: str) -> str:
    """A word of the command for a shell; only what Kubernetes fills in stays a variable."""
    parts = re.split(r"(\$\$|\$\([A-Za-z_][\w.-]*\))", word)
    found = "".join(
        f'"{_unescaped(part)}"' if part.startswith("$(") else shlex.quote(_unescaped(part)) for part in parts if part
    )
    return found or "''"


def _processes(settings: Settings) -> int | None:
    """Processes on a node: as stated, or one a GPU."""
    stated = f"{_TRAINER}.numProcPerNode"
    if settings.text(stated, "auto") not in ("auto", "gpu", "cpu"):
        return settings.integer(stated, 1, least=1)
    for kind in ("limits", "requests"):
        for vendor in ("nvidia.com/gpu", "amd.com/gpu"):
            key = f"{_TRAINER}.resourcesPerNode.{kind}.{vendor}"
            if settings.value(key) is not None:
                return settings.integer(key, 1) or None
    return None


def _environment(trainer: Mapping[str, Any], shape: Shape) -> dict[str, str]:
    """The variables of the TrainJob and those that the controller adds."""
    stated = trainer.get("env")
    found = {
        str(each["name"]): str(each["value"])
        for each in (stated if isinstance(stated, list) else [])
        if isinstance(each, Mapping) and "name" in each and "value" in each
    }
    found["PET_NNODES"] = str(shape.nodes)
    if shape.per_node is not None:
        found["PET_NPROC_PER_NODE"] = str(shape.per_node)
    return found
