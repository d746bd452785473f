"""Checks of libraries: torch and its build, packages that a run needs, releases that exclude others, compilers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ftplan.launcher.preflight.facts import Facts, Torch, TorchDevice
from ftplan.launcher.preflight.findings import Finding, Status
from ftplan.launcher.preflight.installed import COMPILED, TRAINING
from ftplan.launcher.preflight.needs import Needs
from ftplan.launcher.preflight.releases import is_before, satisfies
from ftplan.profiles.packaged import packaged_json

INSTALL: Final = "pip install 'ftplan[train]'"
PACKAGE_OF: Final = {module: package for package, module in COMPILED.items()}


def check_torch(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """torch is there, and on a machine with cards it was built for them."""
    version = facts.installed.versions.get("torch")
    if version is None:
        yield Finding("torch", Status.ERROR if needs else Status.WARNING, "torch is not installed", INSTALL)
        return
    if facts.torch_problem:
        yield Finding(
            "torch", Status.ERROR, f"torch {version} does not import: {facts.torch_problem}", "reinstall torch"
        )
        return
    cuda = facts.torch.cuda if facts.torch is not None else facts.installed.torch_cuda
    wants_cards = needs.on_gpus if needs else bool(facts.cards.cards)
    if cuda is None and facts.torch is None:
        yield Finding("torch", Status.UNKNOWN, f"torch {version} does not say for which CUDA it was built")
        return
    if wants_cards and not cuda:
        message = f"torch {version} is built for CPUs only"
        fix = "install a torch that was built for CUDA, as pip does by default on Linux"
        yield Finding("torch", Status.ERROR, message, fix)
        return
    nccl = f", NCCL {facts.torch.nccl}" if facts.torch is not None and facts.torch.nccl else ""
    yield Finding("torch", Status.OK, f"torch {version}" + (f", CUDA {cuda}{nccl}" if cuda else ", for CPUs"))
    if needs is not None and needs.ranks > 1 and facts.torch is not None and cuda and not facts.torch.nccl:
        yield Finding(
            "NCCL", Status.ERROR, "this torch has no NCCL, which several cards need", "use a torch that has it"
        )


def check_devices(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """torch has kernels for every card, and the card computes in the dtype of the run."""
    if facts.torch is None or (needs is not None and not needs.on_gpus):
        return
    for index, device in enumerate(facts.torch.devices[: needs.ranks if needs else None]):
        if facts.torch.architectures and not _has_kernels(device, facts.torch):
            known = ", ".join(facts.torch.architectures)
            message = (
                f"torch {facts.torch.version} has no kernels for {device.name} ({_architecture(device)}), only {known}"
            )
            yield Finding("GPU kernels", Status.ERROR, message, "install a torch that was built for this card")
        if needs is not None and "bf16" in (needs.config.precision, needs.config.weights_dtype) and not device.bf16:
            message = f"card {index}, {device.name}, has no bf16 arithmetic, and the plan computes in it"
            yield Finding("bf16", Status.ERROR, message, "plan for this card: ftplan plan --gpus local")


def _has_kernels(device: TorchDevice, torch: Torch) -> bool:
    """Binaries run on later minor versions of their generation, PTX (compute_90) on every later card."""
    major, minor = device.capability
    for architecture in torch.architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal():
            continue
        has = (int(digits[:-1]), int(digits[-1]))
        if has <= (major, minor) and (kind == "compute" or has[0] == major):
            return True
    return False


def _architecture(device: TorchDevice) -> str:
    return "sm_" + "".join(map(str, device.capability))


def check_packages(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """What the run needs is installed, is new enough, and imports."""
    versions, minimums = facts.installed.versions, facts.installed.minimums
    wanted = (*TRAINING, *(needs.packages if needs else ()))
    missing = [name for name in wanted if name not in versions and name != "torch"]
    if missing:
        base = [name for name in missing if name in TRAINING]
        fix = INSTALL if base else f"pip install {' '.join(missing)}"
        status = Status.ERROR if needs else Status.WARNING
        yield Finding("packages", status, f"not installed: {', '.join(missing)}", fix)
    old = [
        name
        for name in (*wanted, *(() if needs else versions))
        if name in minimums and name in versions and is_before(versions[name], minimums[name])
    ]
    for name in dict.fromkeys(old):
        message = f"{name} {versions[name]} is older than {minimums[name]}, the oldest this ftplan was written for"
        yield Finding("packages", Status.ERROR if needs else Status.WARNING, message, f"pip install -U {name}")
    for module, reason in (facts.torch.broken if facts.torch else {}).items():
        package = PACKAGE_OF.get(module, module)
        message = f"{package} is installed and does not import: {reason}"
        fix = f"pip install --force-reinstall --no-deps {package}, built for torch {versions.get('torch', '')}"
        yield Finding("packages", Status.ERROR, message, fix)
    if not minimums:
        message = "the oldest releases that suffice are not known: this ftplan is not installed as a package"
        yield Finding("packages", Status.UNKNOWN, message, "pip install -e '.[train]'")
    if not missing and not old:
        told = ", ".join(f"{name} {versions[name]}" for name in wanted if name != "torch")
        yield Finding("packages", Status.OK, told)


def check_versions(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """Releases that exclude each other: by what packages ask of one another, or known to fail together."""
    versions = facts.installed.versions
    for each in facts.installed.requirements:
        there = versions[each.other]
        if not satisfies(there, each.specifier):
            asks = f"{each.package} {versions[each.package]} asks for {each.other} {each.specifier}"
            fix = f"pip install '{each.other}{each.specifier}'"
            yield Finding("versions", Status.ERROR, f"{asks}, and {there} is installed", fix)
    for row in packaged_json("conflicts.json")["conflicts"]:
        package, other = versions.get(row["package"]), versions.get(row["other"])
        used = needs is None or row["package"] in needs.packages
        if not (used and package and other):
            continue
        if not is_before(row["until"], package) and not is_before(other, row["since"]):
            message = (
                f"{row['package']} {package} fails with {row['other']} {other}: {row['symptom']} ({row['source']})"
            )
            yield Finding("versions", Status.ERROR, message, row["fix"])


def check_compiler(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """DeepSpeed builds its optimizer for the host on first use."""
    if needs is None or needs.config.offload == "none" or not needs.config.sharding.startswith("zero"):
        return
    missing = [name for name, there in facts.host.tools.items() if not there]
    if not missing:
        yield Finding("compiler", Status.OK, "g++ and ninja are there for DeepSpeed's optimizer on the host")
        return
    message = f"DeepSpeed builds its optimizer for the host on first use, and lacks {' and '.join(missing)}"
    if missing == ["ninja"] and facts.host.ninja_beside_python:
        yield Finding(
            "compiler",
            Status.ERROR,
            f"{message}, which is installed beside Python, off the PATH",
            "activate the environment",
        )
        return
    fixes = {"g++": "install g++ (apt install g++)", "ninja": "pip install ninja"}
    yield Finding("compiler", Status.ERROR, message, "; ".join(fixes[name] for name in missing))
