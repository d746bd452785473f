"""Training data on disk: which form a file has, whether every row has it, and the rows in one shape.

Light: a preflight check reads and validates data without torch. Every error names the file, the line, and what is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftplan.errors import DataError
from ftplan.launcher.data_files import Located, read_file
from ftplan.launcher.data_forms import FORMS, BadRowError, detect
from ftplan.launcher.job import DataForm, DataSource, FormChoice

Shape = Literal["messages", "prompt-completion", "text"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows of one shape.

    ``messages``: ``{"messages": [{"role", "content"}, …]}``; ``prompt-completion``: ``{"prompt", "completion"}``, both
    strings; ``text``: ``{"text"}``. ``forms`` are the forms the files were in, by name of the file.
    """

    shape: Shape
    rows: tuple[Row, ...]
    forms: Mapping[str, DataForm]

    @property
    def characters(self) -> int:
        """Characters of all rows together."""
        return sum(_characters(value) for row in self.rows for value in row.values())


def load(source: DataSource) -> TrainingData:
    """Every row of the files of ``source``, in order; raises DataError for the first that cannot be used."""
    assert source.paths, "data sets of the hub are read by the training process"
    parts = [normalise(read_file(Path(path)), path, source.form) for path in source.paths]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        said = ", ".join(f"{name} is {form}" for part in parts for name, form in part.forms.items())
        raise DataError(f"the data files mix forms: {said}", hint="bring all files to one form", field="data")
    return TrainingData(
        shape=parts[0].shape,
        rows=tuple(row for part in parts for row in part.rows),
        forms={name: form for part in parts for name, form in part.forms.items()},
    )


def normalise(records: Iterable[Located], origin: str, form: FormChoice) -> TrainingData:
    """Validate ``records`` against ``form`` (``auto``: that of the first) and bring them to one shape."""
    stream = iter(records)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{origin} holds no rows", hint=forms_hint(), field="data")
    chosen = _choose(first, origin) if form == "auto" else form
    rows = tuple(_row(located, origin, chosen) for located in _chain(first, stream))
    return TrainingData(FORMS[chosen].shape, rows, {origin: chosen})


def forms_hint() -> str:
    """The valid forms and what a row of each holds."""
    return "valid forms: " + "; ".join(f"{name} {{{form.keys}}}" for name, form in FORMS.items())


def _choose(first: Located, origin: str) -> DataForm:
    form = detect(first.value)
    if form is None:
        keys = ", ".join(first.value) if isinstance(first.value, Mapping) else type(first.value).__name__
        raise DataError(
            f"{origin}, line {first.line}: a row with {keys or 'no keys'} is in none of the known forms",
            hint=forms_hint(),
            field="data",
        )
    return form


def _row(located: Located, origin: str, form: DataForm) -> Row:
    try:
        return FORMS[form].normalise(located.value)
    except BadRowError as error:
        other = detect(located.value)
        mixed = f" (it looks like {other}: one file holds one form)" if other not in (None, form) else ""
        raise DataError(
            f"{origin}, line {located.line}: not a row in {form} form: {error}{mixed}", hint=forms_hint(), field="data"
        ) from error


def _chain(first: Located, rest: Iterator[Located]) -> Iterator[Located]:
    yield first
    yield from rest


def _characters(value: str | Sequence[Mapping[str, str]]) -> int:
    return len(value) if isinstance(value, str) else sum(len(message["content"]) for message in value)
