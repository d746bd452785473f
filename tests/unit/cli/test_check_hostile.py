"""``ftplan check`` on files that somebody made to harm: a plain error soon, in little memory, and nothing is run.

The real command in a process of its own. `LIMIT_SECONDS` is generous because machines of CI are busy: each
takes less than two seconds on an idle one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMIT_SECONDS = 10
LIMIT_BYTES = 200 * 2**20
N = 250_000
"""Characters, just below the largest file that is read."""
M = 125_000
"""And of Python."""

TRAIN = """model_name_or_path: gpt2
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
cutoff_len: 64
output_dir: out
"""
SECRET = "s3cr3t"
CANARY = "canary"
RUNNER = """
import json, os, signal, sys, time
told, limit, *words = sys.argv[1:]
start = time.monotonic()
child = os.posix_spawn(sys.executable, [sys.executable, "-m", "ftplan", "check", *words], os.environ)
signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
signal.alarm(int(limit))
_, status, usage = os.wait4(child, 0)
code = os.waitstatus_to_exitcode(status)
cpu = usage.ru_utime + usage.ru_stime
with open(told, "w") as file:
    json.dump({"code": code, "wall": time.monotonic() - start, "cpu": cpu, "bytes": usage.ru_maxrss * 1024}, file)
"""
"""A small process between: what a child used most counts that of the process that started it."""

Files = dict[str, str | bytes]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    wall: float
    cpu: float
    bytes: int


@pytest.fixture
def check(tmp_path: Path, record_property) -> Callable[..., Ran]:
    folder = tmp_path / "work"
    folder.mkdir()

    def run(*words: str, files: Files | None = None, gpus: str = "1x24GB") -> Ran:
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        told = tmp_path / "told.json"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "110"}
        split = words.index("--") if "--" in words else len(words)
        given = [*words[:split], "--gpus", gpus, *words[split:]]
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, str(told), str(LIMIT_SECONDS), *given],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        ran = Ran(out=done.stdout.decode(), err=done.stderr.decode(), **json.loads(told.read_text()))
        for name in ("wall", "cpu", "bytes"):
            record_property(name, getattr(ran, name))
        assert not (folder / CANARY).exists(), "something was executed"
        assert ran.code in (0, 1, 2), (ran.code, ran.err[-2000:])
        assert "Traceback" not in ran.out + ran.err
        assert all(char.isprintable() or char == "\n" for char in ran.out + ran.err)
        assert SECRET not in ran.out + ran.err
        assert ran.bytes < LIMIT_BYTES
        assert len(ran.out + ran.err) < 100_000
        if ran.code == 2:
            assert ran.err.startswith("error: ")
            assert sum(line.startswith("error:") for line in ran.err.splitlines()) == 1
        return ran

    run.folder = folder
    return run


def laughs(count: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, count)]
    return "\n".join(lines) + "\n"


YAML = {
    "billion laughs": laughs(30),
    "billion laughs by merging": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)),
    "long chain of aliases": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1200)),
    "list that holds itself": "a: &a [*a]\n",
    "mapping that holds itself": "a: &a {b: *a}\n",
    "mapping that merges itself": "a: &a\n  <<: *a\n",
    "root that holds itself": "&a\nb: *a\n",
    "alias of nothing": "a: *b\n",
    "python tag": f"!!python/object/apply:os.system ['touch {CANARY}']\n",
    "python tag of a value": TRAIN + f"x: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "python tag of a mapping": TRAIN + f"x: !!python/object/new:os.system {{a: 'touch {CANARY}'}}\n",
    "python tag of a scalar": TRAIN + "x: !!python/name:os.system\n",
    "local tag": TRAIN + "x: !include /etc/passwd\n",
    "binary tag": TRAIN + "x: !!binary aGVsbG8=\n",
    "tag of nonsense": TRAIN + "x: !!int ''\n",
    "tag of another kind": TRAIN + "x: !!bool maybe\n",
    "deep lists": "a: " + "[" * N,
    "deep mappings": "a: " + "{a: " * (N // 4),
    "deep block": "".join(" " * i + "a:\n" for i in range(600)),
    "deep dashes": "a:\n" + "- " * (N // 2),
    "deep question marks": "? " * (N // 2),
    "huge key": "k" * N + ": 1\n",
    "huge key of many": "? " + "k" * (N // 2) + "\n: {" + ", ".join(f"a{i}: 1" for i in range(2000)) + "}\n",
    "100,000 keys": "".join(f"{i:x}:\n" for i in range(40_000)),
    "duplicate keys": TRAIN + "stage: pt\n",
    "several documents": TRAIN + "---\n" + TRAIN,
    "many documents": "---\n" * (N // 4),
    "many directives": "".join(f"%TAG !{i}! x\n" for i in range(N // 14)) + "---\na: 1\n",
    "base 60": TRAIN + "x: " + "1:" * (N // 2 - 200) + "1\n",
    "base 60 of a float": TRAIN + "x: " + "1:" * 3000 + "1.5\n",
    "hexadecimal": TRAIN + "x: 0x" + "f" * (N - 200) + "\n",
    "digits": TRAIN + "learning_rate: " + "1" * (N - 200) + "\n",
    "digits that are none": TRAIN + f"learning_rate: '{'1' * (N - 200)}x'\n",
    "list as the root": "- 1\n",
    "scalar as the root": "x" * N,
    "nothing": "",
    "comments": "# x\n" * (N // 4),
    "null character": TRAIN + "x: a\0b\n",
    "escape code": TRAIN + "x: a\x1b[31mb\n",
    "escape code in a key": TRAIN + '"a\\e[31mb\\nerror: x": 1\ncutoff_len: x\n',
    "invalid UTF-8": TRAIN.encode() + b"x: \xff\xfe\n",
    "lone surrogate": TRAIN.encode() + b"x: \xed\xa0\x80\n",
    "UTF-16": TRAIN.encode("utf-16"),
    "binary": bytes(range(256)) * 900,
    "too large": "# x\n" * 100_000,
    "tabs": "a:\n\t- b\n",
    "infinite rank": TRAIN + "lora_rank: .inf\n",
    "rank of no number": TRAIN + "lora_rank: .nan\n",
    "huge rank": TRAIN + "lora_rank: 1e999\n",
    "huge length": TRAIN + "cutoff_len: 999999999999999999999999999\n",
    "negative length": TRAIN + "cutoff_len: -1\n",
    "list for a word": TRAIN + "flash_attn: [a, {b: c}]\n",
    "model elsewhere": TRAIN.replace("gpt2", "../../../../etc/passwd"),
    "model with an escape code": TRAIN.replace("gpt2", '"\\e]0;x\\a\\nerror: x"'),
}
JSON = {
    "deep lists": "[" * N,
    "deep mappings": '{"a":' * (N // 5),
    "huge integer": '{"train_batch_size": ' + "1" * N + "}",
    "hidden comments": '{"zero_optimization": [1, ' + "// " * (N // 3) + "x",
    "open comments": '{"zero_optimization": 1' + "/*" * (N // 2),
    "comments after a comma": '{"zero_optimization": 1, ' + "/* */ " * (N // 7) + "x",
    "open strings": '{"zero_optimization": "' + '\\"' * (N // 2 - 20),
    "commas": '{"zero_optimization": [' + "," * (N - 50) + "]}",
    "duplicate keys": '{"zero_optimization": {"stage": 2, "stage": 3}}',
    "list as the root": "[1]",
    "many keys": "{" + ",".join(f'"{i:x}":1' for i in range(25_000)) + "}",
    "null character": '{"a": "\0"}',
    "stage of infinity": '{"zero_optimization": {"stage": Infinity}}',
    "stage of no number": '{"zero_optimization": {"stage": NaN}}',
    "stage of 1e999": '{"zero_optimization": {"stage": 1e999}}',
}
SCRIPTS = {
    "substitutions": "a " + "$(" * (N // 2),
    "substitutions that run": f"torchrun $(touch {CANARY}) `touch {CANARY}` train.py; touch {CANARY}\n",
    "substitution in a value": f"llamafactory-cli train --x '$(touch {CANARY})' && touch {CANARY} | touch {CANARY}\n",
    "open quotes": "a '" + "x" * N,
    "open double quotes": 'a "' + '\\"' * (N // 2 - 2),
    "many quotes": "'" * N,
    "open variables": "a " + "${" * (N // 2 - 1),
    "variables in variables": "A=xxxxxxxxxx\n"
    + "".join(f"{chr(66 + i)}={f'${chr(65 + i)}' * 9}\n" for i in range(12))
    + "torchrun $M\n",
    "defaults in defaults": "a " + "${A:-" * (N // 5 - 1),
    "here-document of blank lines": "cat <<EOF\n" + "\n" * (N - 20),
    "many here-documents": "cat <<EOF\n" * (N // 10),
    "many commands": "a\n" * (N // 2),
    "many words": "torchrun " + "a " * (N // 2 - 20),
    "many exports": "".join(f"export a{i}=1\n" for i in range(4000)) + "a\n" * 900,
    "many options": "python train.py " + "--a=1 " * (N // 6 - 10),
    "options of brackets": "python train.py " + ("--a " + "[" * 1000 + " ") * 240,
    "options of colons": "python train.py --a " + "1:" * 2000 + "1.5\n",
    "brackets": "(" * N,
    "redirections": "<" * N,
    "backslashes": "\\" * N,
    "calls itself": "bash input.sh\n",
    "calls itself by another name": "bash ./input.sh\n",
    "sources many": "".join(f"bash a{i}.sh\n" for i in range(100)),
    "processes without end": "torchrun --nproc_per_node 99999999999999999999 train.py --do_train\n",
    "machines of no number": "torchrun --nnodes x train.py --do_train\n",
    "devices": "CUDA_VISIBLE_DEVICES=" + "0," * 100_000 + " python train.py --do_train --output_dir x\n",
    "name with an escape code": "llamafactory-cli train $'a\x1b[31m.yaml'\n",
    "name with a line": "llamafactory-cli train 'a\nerror: x.yaml'\n",
    "name of 4,000 characters": f"llamafactory-cli train {'a' * 4000}.yaml\n",
    "program of 4,000 characters": f"python {'a' * 4000}.py --output_dir x --learning_rate 1\n",
}
PYTHON = {
    "deep brackets": "(" * M,
    "deep lists": "x = " + "[" * 150 + "]" * 150 + "\n" + "-" * M + "1",
    "long sum": "x = " + "1+" * (M // 2 - 5) + "1",
    "long attribute": "x" + ".a" * (M // 2 - 5),
    "long calls": "x" + ".a()" * (M // 4 - 5),
    "decorators": "@a\n" * (M // 3),
    "names": "x = [" + "a," * (M // 2 - 5) + "]",
    "huge constant": "TrainingArguments(learning_rate=0x" + "f" * (M - 50) + ")",
    "constant of many": "A = [" + "1," * 20_000 + "]\n" + "SFTConfig(a=A)\n" * 5_000,
    "power": "TrainingArguments(learning_rate=10**10**10, output_dir='a' * 10**12)",
    "deep functions": "".join(" " * i + "def f():\n" for i in range(120)),
    "runs": f"__import__('os').system('touch {CANARY}')\nTrainingArguments(output_dir=open('{CANARY}', 'w'))\n",
    "runs in a default": f"def f(x=__import__('os').system('touch {CANARY}')): pass\nf()\n",
    "encoding": "# -*- coding: unknown -*-\nx = 1\n",
    "null character": "x = '\0'\n",
}


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
def test_yaml(check, content):
    assert check("input.yaml", files={"input.yaml": content}).code == 2


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json(check, content):
    ran = check("train.yaml", files={"ds.json": content, "train.yaml": TRAIN + "deepspeed: ds.json\n"})
    assert ran.code == 2


@pytest.mark.parametrize("content", SCRIPTS.values(), ids=SCRIPTS)
def test_shell(check, content):
    assert check("input.sh", files={"input.sh": content}).code == 2


@pytest.mark.parametrize("content", PYTHON.values(), ids=PYTHON)
def test_python(check, content):
    assert check("input.py", files={"input.py": content}).code in (1, 2)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_marks_and_line_ends_do_no_harm(check, mark, ends):
    ran = check("train.yaml", files={"train.yaml": mark + TRAIN.encode().replace(b"\n", ends) + b"zzz: 1"})
    assert ran.code == 1
    assert "knows no key 'zzz'" in ran.out
    assert "train.yaml:8" in ran.out


@pytest.mark.parametrize(
    "harmless",
    [
        "x: " + "y" * (N - 400),
        "x: |\n" + "  y\n" * (N // 4 - 100),
        "x: [" + "1, " * 4000 + "]",
        "".join(f"key{i}: 1\n" for i in range(2000)),
        "'$(touch canary)': '`touch canary`'",
        "x: 2001-99-99",
        "x: &a [1, 2]\ny: *a",
    ],
    ids=["huge value", "huge text", "long list", "many unknown keys", "shell", "no date", "alias"],
)
def test_what_is_only_odd_gets_its_verdict(check, harmless):
    ran = check("train.yaml", files={"train.yaml": TRAIN + harmless})
    assert ran.code == 1, "LLaMA-Factory refuses keys that it does not know"
    assert "fits" in ran.out
    assert "knows no key" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "secret",
        "secret.txt",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/proc/self/environ",
        ".",
        "missing.json",
        "folder.json",
        "pipe.json",
        "zero.json",
        "memory.json",
        "circle.json",
        "secret.json",
        "secret.yaml",
        "train.yaml",
        "x" * 4000 + ".json",
        "a\\0b.json",
        "a\\nerror: b.json",
        "a\\e[31mb.json",
        "`touch canary`.json",
        "'$(touch canary).json'",
        "{}",
        "[1]",
        "https://example.invalid/x.json",
    ],
)
def test_a_named_file_is_read_only_if_it_is_a_configuration(check, name):
    os.mkfifo(check.folder / "pipe.json")
    (check.folder / "folder.json").mkdir()
    (check.folder / "zero.json").symlink_to("/dev/zero")
    (check.folder / "memory.json").symlink_to("/proc/self/mem")
    (check.folder / "circle.json").symlink_to("circle.json")
    hidden = f"user:{SECRET}:x\n{SECRET}\n"
    files = {"secret": hidden, "secret.txt": hidden, "secret.json": hidden, "secret.yaml": f"- {SECRET}\n"}
    quoted = f'"{name}"' if name[:1] not in "'{[" else name
    ran = check("train.yaml", files={**files, "train.yaml": TRAIN + f"deepspeed: {quoted}\n"})
    assert ran.code == {"{}": 0, "train.yaml": 1}.get(name, 2)
    assert "root:" not in ran.out + ran.err


@pytest.mark.parametrize("name", ["pipe", "folder", "zero", "circle", "memory", "sparse", "large", "missing"])
@pytest.mark.parametrize("suffix", [".yaml", ".json", ".sh", ".py"])
def test_what_is_no_file_is_refused(check, name, suffix):
    path = check.folder / f"input{suffix}"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "sparse":
        with path.open("wb") as file:
            file.truncate(100 * 2**20)
    elif name == "large":
        path.write_bytes(b"a: 1\n" * (20 * 2**20))
    elif name != "missing":
        path.symlink_to({"zero": "/dev/zero", "circle": path.name, "memory": "/proc/self/mem"}[name])
    assert check(path.name).code == 2


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/dev/null", "/etc/passwd", "", "."])
def test_other_words_start_nothing(check, name):
    assert check(name).code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(check):
    (check.folder / "input.yaml").write_text(TRAIN)
    (check.folder / "input.yaml").chmod(0)
    assert "Permission denied" in check("input.yaml").err


def test_accelerate_s_file_that_names_itself(check):
    text = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: accelerate.yaml\n"
    ran = check("accelerate.yaml", "train.yaml", files={"accelerate.yaml": text, "train.yaml": TRAIN})
    assert ran.code in (1, 2)


def test_scripts_that_call_one_another(check):
    files = {"a.sh": "bash b.sh\n" * 100, "b.sh": "bash a.sh\n" * 100}
    assert "named twice" in check("a.sh", files=files).err


def test_many_scripts(check):
    files = {f"a{i}.sh": f"bash a{i + 1}.sh\n" for i in range(40)}
    assert "files refer to one another" in check("a0.sh", files=files).err


@pytest.mark.parametrize(
    "words",
    [
        ("--", "llamafactory-cli", "train", "x; touch canary"),
        ("--", "bash", "-c", "touch canary"),
        ("--", "sh", "-c", "$(touch canary)"),
        ("--", "python", "-c", "open('canary', 'w')"),
        ("--", "python", "a" * 4000 + ".py", "--output_dir", "x"),
        ("--", "python", "a\nerror: b.py"),
        ("--", "env", "A=$(touch canary)", "torchrun"),
        ("--", "torchrun", "--nproc_per_node", "1e9", "train.py"),
        ("--", "deepspeed", "--include", "localhost:" + "0," * 20_000, "train.py"),
        ("a=b.yaml",),
        ("a\x1b[31m.yaml",),
        ("a\nerror: b.yaml",),
        ("x" * 4000 + ".yaml",),
        ("train.yaml", "[" * 4000 + "=1"),
        ("train.yaml", "--set", "cutoff_len=" + "1:" * 2000 + "1.5"),
        ("train.yaml", "--set", "lora_rank=0x" + "f" * 5000),
        ("train.yaml", "--from", "\x1b[31m"),
        ("train.yaml", "train.yaml"),
        ("train.yaml", "other.yaml"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_hostile_words(check, words):
    assert check(*words, files={"train.yaml": TRAIN, "other.yaml": TRAIN}).code == 2


@pytest.mark.parametrize("output", ["json", "github", "sarif"])
def test_every_form_of_output_keeps_escape_codes_out(check, output):
    text = TRAIN + '"a\\e[31m\\x9b": 1\nper_device_train_batch_size: 1\noptim: "x\\e]0;y\\a"\n'
    check("train.yaml", "--format", output, files={"train.yaml": text})


def test_sizes_beyond_all_measure_get_an_answer(check):
    text = TRAIN + "per_device_train_batch_size: 999999999999\ngradient_accumulation_steps: 99999999999\n"
    assert check("train.yaml", files={"train.yaml": text}).code in (1, 2)
