"""Files for schedulers: hostile values stay values, and a wrapped configuration is read as the one that was meant."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import configs

from ftplan.errors import CannotExpressError, FtplanError
from ftplan.launcher.formats import llamafactory
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.launcher.formats.kubeflow import escaped, read_kubeflow
from ftplan.launcher.formats.rendering import _files
from ftplan.launcher.formats.skypilot import read_skypilot
from ftplan.launcher.formats.slurm import directives
from ftplan.launcher.formats.sources import Source, opened
from ftplan.launcher.formats.wrapping import native, wrap
from ftplan.spec import RunConfig

KINDS: Final = ("slurm", "skypilot", "kubeflow")
MAIN: Final = {"slurm": "job.sbatch", "skypilot": "task.yaml", "kubeflow": "trainjob.yaml"}
PLANTED: Final = (
    "$(touch hacked)",
    "`touch hacked`",
    "'; touch hacked; '",
    '"; touch hacked; "',
    "a\ntouch hacked\n",
    "a b",
    "--x",
    "*",
    "~",
    "${PATH}",
    "\\",
    "#SBATCH --nodes=9",
    "$(PET_NNODES)",
    "$$",
    "a: b",
    "é\u2028\x85",
    "\ufeff\x1b[0m\t",
)
hostile = st.one_of(
    st.sampled_from(PLANTED),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30),
    st.lists(st.sampled_from(PLANTED), min_size=2, max_size=3).map("".join),
)
PRINTER: Final = "#!/usr/bin/env bash\nprintf '%s\\0' \"$@\"\n"


@settings(max_examples=40)
@given(data=hostile, folder=hostile, extra=hostile)
def test_words_reach_the_program_as_they_are(data: str, folder: str, extra: str) -> None:
    target = Target(1, 2, output_dir=f"runs/{folder}")
    inner = native(target, [data], options=["--weights", extra])
    script = wrap("slurm", inner, target, Cluster())["launch.sh"]
    expected = ["run", "plan.json", "--data", data, "--run-dir", target.output_dir]
    expected += ["--resume-or-start", "--weights", extra]
    assert _printed(script, "ftplan") == expected


@settings(max_examples=30)
@given(words=st.lists(hostile, max_size=4), value=hostile)
def test_words_and_variables_on_several_nodes(words: list[str], value: str) -> None:
    inner = Emitted({}, "", ("torchrun", "--standalone", "train.py", *words), {"OURS": value})
    script = wrap("skypilot", inner, Target(2, 4), Cluster(gpu_name="L4"))["launch.sh"]
    found = _printed(script, "torchrun", SKYPILOT_NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    assert found[found.index("train.py") + 1 :] == words
    assert found[:3] == ["--nnodes=2", "--nproc_per_node=4", "--node_rank=1"]


def _printed(script: str, program: str, **variables: str) -> list[str]:
    """What ``program`` gets when the script is run; nothing else may happen in its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = folder / "bin"
        tools.mkdir()
        (tools / program).write_text(PRINTER)
        (tools / program).chmod(0o755)
        (folder / "launch.sh").write_text(script, encoding="utf-8")
        done = subprocess.run(
            ["bash", str(folder / "launch.sh")],
            capture_output=True,
            check=True,
            env={**variables, "PATH": f"{tools}:{os.environ['PATH']}"},
        )
        assert sorted(path.name for path in folder.iterdir()) == ["bin", "launch.sh"]
        return done.stdout.decode("utf-8").split("\0")[:-1]


@given(kind=st.sampled_from(KINDS), dataset=hostile, folder=hostile, name=hostile, account=hostile)
def test_hostile_values_are_quoted_or_refused(kind: str, dataset: str, folder: str, name: str, account: str) -> None:
    target = Target(2, 8, dataset=dataset, output_dir=folder)
    config = RunConfig(model="Qwen/Qwen2.5-7B", stack="llamafactory", sharding="zero2")
    cluster = Cluster(name=name, gpu_name="H100", account=account if kind == "slurm" else "")
    inner = llamafactory.emit(config, target)
    for asked in (cluster, Cluster(gpu_name="H100")):
        try:
            files = wrap(kind, inner, target, asked)
        except FtplanError:
            if asked is not cluster:
                raise
            continue
        main = yaml.safe_load(files["train.yaml"])
        assert (main["dataset"], main["output_dir"]) == (dataset, folder)
        _look_at(kind, files, asked)


def _look_at(kind: str, files: dict[str, str], asked: Cluster) -> None:
    text = files[MAIN[kind]]
    if kind == "slurm":
        found = {key: each.value for key, each in directives(text, Path("job.sbatch")).items()}
        assert (found["job_name"], found["nodes"], found.get("account", "")) == (asked.name, "2", asked.account)
        return
    content = yaml.safe_load(text)
    if kind == "skypilot":
        assert content["name"] == asked.name
    else:
        assert content["metadata"]["name"] == asked.name
        held = yaml.safe_load(files["configmap.yaml"])["data"]
        assert held["train.yaml"] == files["train.yaml"]


@given(packages=st.lists(hostile, min_size=1, max_size=3))
def test_packages_are_words(packages: list[str]) -> None:
    target = Target(1, 8)
    inner = native(target, ["a.jsonl"])
    cluster = Cluster(gpu_name="H100", packages=tuple(packages))
    task = yaml.safe_load(wrap("skypilot", inner, target, cluster)["task.yaml"])
    assert _printed(task["setup"], "pip") == ["install", *packages]
    document = parse_document(wrap("kubeflow", inner, target, cluster)["trainjob.yaml"], Path("trainjob.yaml"))
    install = read_kubeflow(document).text.split("\ncp -L ")[0]
    assert _printed(install, "pip") == ["install", *packages]


@given(text=st.text(st.sampled_from("$()AB x"), max_size=12))
def test_kubernetes_leaves_escaped_text_as_it_is(text: str) -> None:
    assert _expanded(escaped(text), {"A": "filled", "B": "in"}) == text


def _expanded(text: str, variables: dict[str, str]) -> str:
    """Arguments as Kubernetes fills them in (third_party/forked/golang/expansion/expand.go)."""
    found = ""
    at = 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            found, at = found + text[at], at + 1
        elif text[at + 1] == "$":
            found, at = found + "$", at + 2
        elif text[at + 1] == "(" and ")" in text[at:]:
            end = text.index(")", at)
            found += variables.get(text[at + 2 : end], text[at : end + 1])
            at = end + 1
        else:
            found, at = found + text[at : at + 2], at + 2
    return found


_expressible = 0


@settings(max_examples=60)
@given(config=configs(), nodes=st.sampled_from((1, 2)), per_node=st.sampled_from((1, 4)))
def test_a_wrapped_configuration_is_read_as_the_same(config: RunConfig, nodes: int, per_node: int) -> None:
    """The script of every node, and sbatch's around it, say what the plain one says, on as many devices."""
    global _expressible
    target = Target(nodes, per_node)
    try:
        inner = llamafactory.emit(config.model_copy(update={"model": "owner/name"}), target)
    except CannotExpressError:
        return
    _expressible += 1
    meant = _read("launch.sh", _files(inner, "a test")).understood(target.ranks).fields
    for kind in KINDS:
        files = wrap(kind, inner, target, Cluster(gpu_name="H100"))
        for name in ("launch.sh", "job.sbatch") if kind == "slurm" else ("launch.sh",):
            source = _read(name, files)
            assert source.understood(target.ranks).fields == meant
            if target.ranks > 1:
                assert (source.shape.nodes or 1, source.shape.per_node) == (nodes, per_node)


def _read(name: str, files: dict[str, str]) -> Source:
    return opened([f"here/{name}"], Files({Path("here") / each: text for each, text in files.items()}))


def test_enough_of_them_can_be_expressed() -> None:
    """Runs after the property, which must not hold for want of cases."""
    assert _expressible == 0 or _expressible > 8


@given(kind=st.sampled_from(KINDS), nodes=st.integers(1, 64), per_node=st.integers(1, 16))
def test_devices_are_read_as_written(kind: str, nodes: int, per_node: int) -> None:
    target = Target(nodes, per_node)
    inner = Emitted({}, "", ("torchrun", "--standalone", "train.py"))
    files = wrap(kind, inner, target, Cluster(gpu_name="H100"))
    if kind == "slurm":
        found = directives(files["job.sbatch"], Path("job.sbatch"))
        assert (found.integer("nodes", 0), found.integer("gpus_per_node", 0)) == (nodes, per_node)
        return
    document = parse_document(files[MAIN[kind]], Path("task.yaml"))
    shape = (read_skypilot if kind == "skypilot" else read_kubeflow)(document).shape
    assert (shape.nodes, shape.per_node) == (nodes, per_node)
