"""The options that launchers have, and the names that accelerate's file has for those of ``accelerate launch``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary

ACCELERATE_FLAGS: Final = frozenset(
    {
        *("cpu", "multi_gpu", "tpu", "ipex", "use_xpu", "quiet", "module", "m", "no_python", "debug", "same_network"),
        *("use_deepspeed", "use_fsdp", "use_megatron_lm", "use_parallelism_config", "tpu_use_cluster", "tpu_use_sudo"),
        *("enable_cpu_affinity", "downcast_bf16", "no_tpu_cluster", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
        *("dynamo_use_regional_compilation", "tpu_cluster", "fp8_use_autocast_during_eval"),
    }
)
TORCHRUN_FLAGS: Final = frozenset(
    {"standalone", "no_python", "run_path", "m", "module", "use_env", "virtual_local_rank"}
)
DEEPSPEED_FLAGS: Final = frozenset(
    {
        *("force_multi", "enable_each_rank_log", "no_local_rank", "no_python", "module", "bind_cores_to_rank"),
        *("elastic_training", "no_ssh", "no_ssh_check", "save_pid"),
    }
)

ACCELERATE_ALONE: Final = frozenset(
    {
        *("config_file", "accelerate_config", "quiet", "module", "m", "no_python", "num_cpu_threads_per_process"),
        *("tee", "log_dir", "role", "rdzv_conf", "max_restarts", "monitor_interval", "tpu_cluster", "no_tpu_cluster"),
        *("vm", "env", "aws_access_key_id", "aws_secret_access_key", "use_parallelism_config", "use_xpu", "ipex"),
        *("multi_gpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu"),
    }
)
"""Options of ``accelerate launch`` that its file has no key for, or another one (`KINDS`)."""
KINDS: Final = {
    "multi_gpu": "MULTI_GPU",
    "use_deepspeed": "DEEPSPEED",
    "use_fsdp": "FSDP",
    "use_megatron_lm": "MEGATRON_LM",
    "tpu": "XLA",
}
"""Options that choose what accelerate's file calls ``distributed_type``."""
TORCHRUN: Final = TORCHRUN_FLAGS | {
    *("nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf", "max_restarts"),
    *("monitor_interval", "start_method", "event_log_handler", "role", "log_dir", "r", "redirects", "t", "tee"),
    *("local_ranks_filter", "duplicate_stdout_filters", "duplicate_stderr_filters", "node_rank", "master_addr"),
    *("master_port", "local_addr", "logs_specs", "numa_binding", "signals_to_handle", "shutdown_timeout"),
}
DEEPSPEED: Final = DEEPSPEED_FLAGS | {
    *("H", "hostfile", "i", "include", "e", "exclude", "num_nodes", "min_elastic_nodes", "max_elastic_nodes"),
    *("num_gpus", "master_port", "master_addr", "node_rank", "launcher", "launcher_args", "autotuning"),
    *("bind_core_list", "ssh_port", "venv_script"),
}
OWN: Final[Mapping[str, frozenset[str]]] = {"torchrun": TORCHRUN, "tune": TORCHRUN, "deepspeed": DEEPSPEED}
"""The options of launchers that have no configuration file."""
COUNTS: Final[Mapping[str, tuple[str, ...]]] = {
    "torchrun": ("nnodes", "nproc_per_node"),
    "tune": ("nnodes", "nproc_per_node"),
    "deepspeed": ("num_nodes", "num_gpus", "include", "i", "exclude", "e"),
}
"""Those of their options that say how many processes start, and where."""


@cache
def file_keys() -> Mapping[str, str]:
    """The key of accelerate's file for each option that has one."""
    found = {"cpu": "use_cpu"}
    for key in load_vocabulary("accelerate").defaults:
        section, _, name = key.rpartition(".")
        found[f"fp8_{name}" if section == "fp8_config" else name] = key
    return found


def as_file_settings(options: Settings) -> Settings:
    """``accelerate launch``'s options under the keys of its file; one that it does not have keeps its name."""
    keys = file_keys()
    found = {_file_key(key, keys): each for key, each in options.items() if key not in ACCELERATE_ALONE}
    for flag, kind in KINDS.items():
        if options.flag(flag):
            found["distributed_type"] = Setting(flag, kind, options.place(flag))
    return Settings(found)


def _file_key(option: str, keys: Mapping[str, str]) -> str:
    """Older options of FSDP stand among the file's keys under their own names, too."""
    return keys.get(option, f"fsdp_config.{option}" if option.startswith("fsdp_") else option)


@cache
def handed_on_by_axolotl() -> frozenset[str]:
    """Options that ``axolotl train`` does not know, and so gives to accelerate or torchrun (cli/main.py)."""
    own = {*load_vocabulary("axolotl").defaults, "debug", "config"}
    return frozenset({*file_keys(), *ACCELERATE_ALONE, *TORCHRUN} - own)
