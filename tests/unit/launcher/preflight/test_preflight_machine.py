"""What is observed: memory from a made-up root, packages from made-up metadata, disks and limits from this machine."""

import pytest

from ftplan.errors import InputError
from ftplan.launcher.preflight import installed, machine
from ftplan.launcher.preflight.facts import Requirement
from ftplan.units import GIB

MEMINFO = "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\n"


@pytest.fixture
def root(tmp_path):
    """Make files below a root folder, with 16 GiB available of the whole system."""

    def make(**files):
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_ram_is_what_the_system_has_available(root):
    assert machine.available_bytes(root()) == 16 * GIB


def test_a_control_group_leaves_less(root):
    group = "sys/fs/cgroup/job"
    made = root(
        **{
            "proc/self/cgroup": "0::/job\n",
            f"{group}/memory.max": f"{8 * GIB}\n",
            f"{group}/memory.current": f"{7 * GIB}\n",
            f"{group}/memory.stat": f"anon {3 * GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}\n",
        }
    )
    assert machine.available_bytes(made) == 5 * GIB  # pages of files can be taken back


def test_the_first_version_of_control_groups_counts_the_groups_below(root):
    group = "sys/fs/cgroup/memory"
    made = root(
        **{
            f"{group}/memory.limit_in_bytes": f"{8 * GIB}",
            f"{group}/memory.usage_in_bytes": f"{6 * GIB}",
            f"{group}/memory.stat": f"inactive_file {GIB}\ntotal_inactive_file {2 * GIB}\ntotal_active_file 0\n",
        }
    )
    assert machine.available_bytes(made) == 4 * GIB


def test_a_group_without_a_limit_is_none(root):
    assert machine.available_bytes(root(**{"sys/fs/cgroup/memory.max": "max\n"})) == 16 * GIB


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    disk = machine.disk(tmp_path / "runs" / "one")
    assert disk.folder == str(tmp_path)
    assert disk.free_bytes > 0
    assert disk.held_bytes == 0


def test_a_folder_with_a_name_too_long_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="File name too long") as caught:
        machine.disk(tmp_path / ("x" * 5000))
    assert caught.value.field == "run_dir"


def test_checkpoints_of_a_run_are_what_it_holds(tmp_path):
    folder = tmp_path / "checkpoints" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    aside = folder.with_name("damaged-checkpoint-1-1")
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"x" * 500)
    assert machine.disk(tmp_path).held_bytes == 1000


def test_limits_and_tools_of_this_process():
    host = machine.host()
    assert host.cores >= 1
    assert host.ram_available_bytes > 0
    assert set(host.tools) == {"g++", "ninja"}


REQUIRES = {
    "ftplan": [
        "rich>=13.9",
        "torch>=2.11; extra == 'train'",
        "deepspeed>=0.19.8; (sys_platform != 'x') and extra == \"train\"",
        "bitsandbytes>=0.50; sys_platform == 'x' and extra == 'train'",
        "ruff>=1; extra == 'dev'",
    ],
    "torch": ["numpy<3,>=1.26", "jinja2"],
    "trl": ["Huggingface_Hub (>=0.34)", "torch>=2; python_version < '3.9'", "numpy[all]>=2; python_version > '3'"],
}


@pytest.fixture
def metadata(monkeypatch):
    versions = {"torch": "2.13.0", "trl": "1.16.0", "numpy": "2.4.6", "huggingface-hub": "2.4.0"}
    monkeypatch.setattr(installed, "_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(installed, "requires", REQUIRES.get)
    monkeypatch.setattr(installed, "_torch_cuda", lambda: "13.0")


@pytest.mark.usefixtures("metadata")
def test_packages_by_their_metadata():
    found = installed.installed()
    assert found.minimums == {"torch": "2.11", "deepspeed": "0.19.8"}
    assert set(found.requirements) == {
        Requirement("torch", "numpy", "<3,>=1.26"),
        Requirement("trl", "huggingface-hub", ">=0.34"),
        Requirement("trl", "numpy", ">=2"),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", ""),
        ("debug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'x'\n", "13.0"),
        ("cuda = '12.8'\n", "12.8"),
        ("nothing of the kind", None),
    ],
)
def test_the_cuda_of_torch_without_importing_it(text, expected, tmp_path, monkeypatch):
    class Torch:
        def locate_file(self, name):
            (tmp_path / "version.py").write_text(text)
            return tmp_path / "version.py"

    monkeypatch.setattr(installed, "distribution", lambda name: Torch())
    assert installed._torch_cuda() == expected
