"""Which pictures the gallery has: the commands, what each shows, and the names of their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Scheme = Literal["light", "dark"]

WIDE: Final = 100
INPUTS: Final = ("train.yaml", "zero2.json")
"""Of examples/: what the check is of."""


@dataclass(frozen=True)
class Shot:
    """A command in a terminal. ``frame`` is a pattern of its live display to stop at; ``after`` runs first."""

    name: str
    command: str
    says: str
    columns: int = WIDE
    code: int = 0
    frame: str = ""
    after: str = ""

    @property
    def files(self) -> dict[str, str]:
        """Each file with what it is a picture of."""
        return {f"{self.name}.svg": f"{self.command}, {self.columns} columns"}


@dataclass(frozen=True)
class View:
    """A browser's window. ``scale`` is pixels of the picture for one of the page."""

    name: str
    width: int
    scheme: Scheme
    scale: int = 1
    is_phone: bool = False

    @property
    def height(self) -> int:
        """Of the window."""
        return 844 if self.is_phone else 1000

    @property
    def words(self) -> str:
        """The window in words."""
        return f"{'phone, ' if self.is_phone else ''}{self.width} px, {self.scheme}"


@dataclass(frozen=True)
class Report:
    """A page that ``--report`` writes, in every view."""

    name: str
    command: str
    says: str
    code: int = 0

    @property
    def files(self) -> dict[str, str]:
        """Each file with what it is a picture of."""
        return {f"{self.name}-{view.name}.png": f"{self.command}, {view.words}" for view in REPORT_VIEWS}


@dataclass(frozen=True)
class Tab:
    """A moment of the local page."""

    name: str
    says: str
    views: tuple[str, ...] = ("desktop", "phone")

    command = "ftplan ui"

    @property
    def files(self) -> dict[str, str]:
        """Each file with what it is a picture of."""
        return {f"{self.name}-{view}.png": f"{self.says} {PAGE_VIEWS[view].words}" for view in self.views}


Entry = Shot | Report | Tab

REPORT_VIEWS: Final = (
    View("light", 1100, "light"),
    View("dark", 1100, "dark"),
    View("phone-light", 390, "light", scale=2, is_phone=True),
    View("phone-dark", 390, "dark", scale=2, is_phone=True),
)
PAGE_VIEWS: Final = {
    "desktop": View("desktop", 1280, "light"),
    "dark": View("dark", 1280, "dark"),
    "phone": View("phone", 390, "dark", scale=2, is_phone=True),
}

PLAN: Final = "ftplan plan --model Qwen-7B --gpus 2x24GB"
CHECK: Final = "ftplan check train.yaml --gpus 4x24GB"
ESTIMATE: Final = (
    "ftplan estimate --model Llama-3.1-8B --gpus 4xA100-80GB --method full --sharding zero3"
    " --micro-batch 2 --accumulation 4 --seq-len 4096"
)
DEMO: Final = "ftplan run --demo"

SHOTS: Final = (
    Shot("help", "ftplan --help", "What there is.", columns=80),
    Shot("plan", PLAN, "What fits, how fast it is and why, and what was rejected."),
    Shot("check", CHECK, "A LLaMA-Factory file with its DeepSpeed file: where it runs out, and what mends it.", code=1),
    Shot("check-narrow", CHECK, "The same on a narrow terminal.", columns=60, code=1),
    Shot("estimate", ESTIMATE, "Memory by phase, and time, of one exact configuration."),
    Shot("need", "ftplan need --model Llama-3.1-70B --method qlora", "Which cards suffice."),
    Shot("max", "ftplan max --model Qwen2.5-7B --gpus 1xRTX4090", "Longest sequence, micro-batch and rank that fit."),
    Shot("run-live", DEMO, "A run as it trains: loss, speed, and each rank's memory beside its prediction.",
         frame=r"step 3\d/60"),
    Shot("run", DEMO, "The same run when it has ended: predicted beside measured."),
    Shot("report", "ftplan report", "What its folder tells afterwards.", after=DEMO),
    Shot("doctor", "ftplan doctor", "Whether this machine can train, and what to mend: here one without a GPU."),
)  # fmt: skip
REPORTS: Final = (
    Report("plan-report", f"{PLAN} --report plan.html", "The plan as one file for a browser, which loads nothing."),
    Report("check-report", f"{CHECK} --report check.html", "What is wrong with the files, and what would mend it.",
           code=1),
    Report("estimate-report", f"{ESTIMATE} --report estimate.html", "Memory over the phases of a step."),
)  # fmt: skip
TABS: Final = (
    Tab("page-plan", "The plan follows the controls.", ("desktop", "dark", "phone")),
    Tab("page-compare", "A plan that was kept, beside the one of now."),
    Tab("page-check", "Files that were dropped into the page."),
    Tab("page-run", "The demo as it trains."),
    Tab("page-finished", "The demo when it has ended."),
)
SECTIONS: Final[dict[str, tuple[Entry, ...]]] = {
    "In a terminal": SHOTS,
    "Reports": REPORTS,
    "The local page": TABS,
}
ENTRIES: Final[tuple[Entry, ...]] = (*SHOTS, *REPORTS, *TABS)


def chosen(names: list[str]) -> tuple[Entry, ...]:
    """The entries of these names, in order, or all; raises ValueError for a name that there is not."""
    known = [entry.name for entry in ENTRIES]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such picture: {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(entry for entry in ENTRIES if not names or entry.name in names)
