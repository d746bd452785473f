import pytest
from observed import VERSIONS, facts, host, needs, packages, torch

from ftplan.launcher.preflight.facts import Installed, Requirement, TorchDevice
from ftplan.launcher.preflight.findings import Status
from ftplan.launcher.preflight.libraries import (
    check_compiler,
    check_devices,
    check_packages,
    check_torch,
    check_versions,
)
from ftplan.spec import RunConfig

OK, WARNING, ERROR = Status.OK, Status.WARNING, Status.ERROR


def statuses(check, of, wanted=None):
    return [finding.status for finding in check(of, wanted)]


def test_torch_is_there_and_built_for_the_cards():
    (found,) = check_torch(facts(), needs())
    assert (found.status, found.message) == (OK, "torch 2.13.0+cu130, CUDA 13.0, NCCL 2.27.7")
    cpu_only = facts(installed=packages(torch="2.13.0+cpu", torch_cuda=""), torch=torch(cuda=None, devices=()))
    (found,) = check_torch(cpu_only, needs())
    assert (found.status, found.message) == (ERROR, "torch 2.13.0+cpu is built for CPUs only")
    assert "built for CUDA" in found.fix
    assert statuses(check_torch, cpu_only, needs(card_bytes=())) == [OK]
    assert statuses(check_torch, cpu_only) == [ERROR]  # the machine has cards


def test_the_build_is_known_without_asking_torch():
    told = facts(installed=packages(torch="2.13.0+cpu", torch_cuda=""), torch=None)
    assert statuses(check_torch, told, needs()) == [ERROR]
    assert statuses(check_torch, facts(torch=None), needs()) == [OK]
    untold = facts(installed=packages(torch_cuda=None), torch=None)
    assert statuses(check_torch, untold, needs()) == [Status.UNKNOWN]


def test_torch_that_is_missing_or_broken():
    told = facts(installed=packages(torch=""), torch=None)
    assert statuses(check_torch, told, needs()) == [ERROR]
    assert statuses(check_torch, told) == [WARNING]
    (found,) = check_torch(facts(torch=None, torch_problem="ImportError: libcudart.so.13"), needs())
    assert found.message == "torch 2.13.0+cu130 does not import: ImportError: libcudart.so.13"


def test_several_cards_need_nccl():
    told = facts(torch=torch(nccl=""))
    assert statuses(check_torch, told, needs()) == [OK, ERROR]
    assert statuses(check_torch, told, needs(card_bytes=(1,))) == [OK]


@pytest.mark.parametrize(
    ("capability", "has"),
    [
        ((8, 0), True),
        ((8, 9), True),  # sm_86 runs on later minor versions
        ((7, 5), False),
        ((12, 0), True),  # PTX
        ((12, 1), True),
        ((11, 0), False),  # neither a binary of its generation nor older PTX
    ],
)
def test_torch_has_kernels_for_the_card(capability, has):
    device = TorchDevice("a card", capability, bf16=True)
    told = facts(torch=torch(devices=(device,)))
    assert statuses(check_devices, told, needs()) == ([] if has else [ERROR])


def test_a_plan_in_bf16_needs_cards_that_have_it():
    told = facts(torch=torch(devices=(TorchDevice("Tesla T4", (7, 5), bf16=False),), architectures=("sm_75",)))
    assert statuses(check_devices, told, needs()) == [ERROR]
    in_fp16 = RunConfig(model="Qwen-7B", weights_dtype="fp16", precision="fp16")
    assert statuses(check_devices, told, needs(config=in_fp16)) == []
    assert statuses(check_devices, told) == []


def test_packages_of_the_configuration_are_needed_too():
    (found,) = check_packages(facts(), needs())
    assert found.status is OK
    (found,) = check_packages(facts(), needs(packages=("deepspeed", "liger-kernel")))
    assert (found.status, found.message) == (ERROR, "not installed: deepspeed, liger-kernel")
    assert found.fix == "pip install deepspeed liger-kernel"
    (found,) = check_packages(facts(installed=packages(peft="")), needs())
    assert (found.status, found.fix) == (ERROR, "pip install 'ftplan[train]'")
    assert statuses(check_packages, facts(installed=packages(peft=""))) == [WARNING]


def test_packages_have_to_be_new_enough():
    (found,) = check_packages(facts(installed=packages(transformers="5.9.0")), needs())
    assert found.status is ERROR
    assert found.message.startswith("transformers 5.9.0 is older than 5.17")
    assert found.fix == "pip install -U transformers"
    old_deepspeed = facts(installed=packages(deepspeed="0.18.0"))
    assert statuses(check_packages, old_deepspeed, needs()) == [OK]  # this run does not use it
    assert statuses(check_packages, old_deepspeed, needs(packages=("deepspeed",))) == [ERROR]
    assert statuses(check_packages, old_deepspeed) == [WARNING]


def test_the_oldest_releases_are_not_known_without_metadata():
    told = facts(installed=Installed(VERSIONS, {}, (), "13.0"))
    assert statuses(check_packages, told, needs()) == [Status.UNKNOWN, OK]


def test_an_extension_built_for_another_torch():
    told = facts(
        installed=packages(flash_attn="2.8.3"), torch=torch(broken={"flash_attn_2_cuda": "undefined symbol: _ZN3c10"})
    )
    broken, _ = check_packages(told, needs(packages=("flash-attn",)))
    assert broken.status is ERROR
    assert broken.message == "flash-attn is installed and does not import: undefined symbol: _ZN3c10"


def test_what_packages_ask_of_one_another():
    asked = (Requirement("bitsandbytes", "torch", "<3,>=2.4"), Requirement("transformers", "peft", ">=0.22"))
    told = facts(installed=packages(bitsandbytes="0.50.2", requirements=asked))
    (found,) = check_versions(told, needs())
    assert found.status is ERROR
    assert found.message == "transformers 5.23.0 asks for peft >=0.22, and 0.21.2 is installed"
    assert found.fix == "pip install 'peft>=0.22'"


def test_releases_that_are_known_to_fail_together():
    liger = needs(packages=("liger-kernel",))
    (found,) = check_versions(facts(installed=packages(liger_kernel="0.6.4")), liger)
    assert found.status is ERROR
    assert "github.com/huggingface/trl/pull/4898" in found.message
    assert statuses(check_versions, facts(installed=packages(liger_kernel="0.6.5")), liger) == []
    assert statuses(check_versions, facts(installed=packages(liger_kernel="0.6.4")), needs()) == []
    older = packages(liger_kernel="0.6.4", transformers="4.57.6")
    assert statuses(check_versions, facts(installed=older), liger) == []


def test_deepspeed_builds_its_optimizer_for_the_host():
    offloaded = needs(config=RunConfig(model="Qwen-7B", sharding="zero2", offload="optimizer"))
    assert statuses(check_compiler, facts(), offloaded) == [OK]
    assert statuses(check_compiler, facts(host=host(tools={"g++": False, "ninja": False})), needs()) == []
    (found,) = check_compiler(facts(host=host(tools={"g++": False, "ninja": True})), offloaded)
    assert (found.status, found.fix) == (ERROR, "install g++ (apt install g++)")
    off_the_path = host(tools={"g++": True, "ninja": False}, ninja_beside_python=True)
    (found,) = check_compiler(facts(host=off_the_path), offloaded)
    assert (found.status, found.fix) == (ERROR, "activate the environment")
