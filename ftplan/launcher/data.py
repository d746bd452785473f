"""Training data: which form a file has, whether every row has it, and the rows in one shape.

Light: a preflight check reads and validates local data without torch. Every error names the file, the line, and what
is missing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from ftplan.errors import DataError
from ftplan.launcher.bad_rows import BadRows, Place
from ftplan.launcher.data_described import described_form
from ftplan.launcher.data_files import Located, read_file
from ftplan.launcher.data_forms import FORMS, Form, Shape, detect
from ftplan.launcher.job import DataSource, DescribedSet, FormChoice
from ftplan.launcher.row_fields import BadRowError

Row = Mapping[str, Any]

HubReader = Callable[[DescribedSet], Iterable[Located]]
"""Reads a data set of the hub: the training process can."""

LOOKED_AT: Final = 1000
"""Rows at the beginning of a file in which one of a known form is looked for."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows of one shape, and where each comes from.

    ``messages``: ``{"messages": [{"role", "content"}, …]}``; ``prompt-completion``: ``{"prompt", "completion"}``, both
    strings; ``text``: ``{"text"}``. ``forms`` are the forms the files were in, by name of the file. ``note`` tells of
    rows that were skipped; it is empty if there are none.
    """

    shape: Shape
    rows: tuple[Row, ...]
    places: tuple[Place, ...]
    forms: Mapping[str, str]
    note: str = ""

    def only(self, indices: Iterable[int]) -> TrainingData:
        """The rows at ``indices``."""
        chosen = list(indices)
        return replace(self, rows=tuple(self.rows[i] for i in chosen), places=tuple(self.places[i] for i in chosen))

    @property
    def characters(self) -> int:
        """Characters of all rows together."""
        return sum(_characters(value) for row in self.rows for value in row.values())


def check(source: DataSource) -> str:
    """Read every local row of ``source``, and return a note of those skipped; the hub is not asked.

    Raises DataError as `load` does.
    """
    sets = [one for one in _sets(source) if one.hub is None]
    return _data(sets, source, seed=0).note if sets else ""


def load(source: DataSource, *, seed: int = 0, hub: HubReader | None = None) -> TrainingData:
    """Every row of ``source``, in order; ``seed`` is for sets of which a number of rows is to be drawn.

    Raises DataError for rows that cannot be used, all counted and the first of them shown, unless they may be skipped
    and others are left; for a file that cannot be read; and for files of different shapes.
    """
    return _data(list(_sets(source)), source, seed=seed, hub=hub)


def forms_hint() -> str:
    """The valid forms and what a row of each holds."""
    return "valid forms: " + "; ".join(f"{name} {{{form.keys}}}" for name, form in FORMS.items())


@dataclass(frozen=True, slots=True)
class _Set:
    """Files of one form, or a set of the hub; ``form`` is a name, ``auto``, or that of a description."""

    form: FormChoice | Form
    paths: tuple[str, ...] = ()
    hub: DescribedSet | None = None
    num_samples: int | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """The good rows of one file."""

    origin: str
    form: Form
    rows: tuple[tuple[Row, Place], ...]


def _sets(source: DataSource) -> Iterator[_Set]:
    if source.paths:
        yield _Set(source.form, source.paths)
    if source.hub is not None:
        yield _Set(source.form, hub=source.hub_sets[0])
    for one in source.described:
        yield _Set(described_form(one), one.paths, one if one.hub is not None else None, one.num_samples)


def _data(sets: Sequence[_Set], source: DataSource, *, seed: int, hub: HubReader | None = None) -> TrainingData:
    bad = BadRows()
    drawn: list[tuple[Row, Place]] = []
    parts: list[_Part] = []
    for one in sets:
        own = [_part(origin, records, one.form, bad) for origin, records in _records(one, hub)]
        parts += own
        drawn += _drawn(tuple(chain.from_iterable(part.rows for part in own)), one.num_samples, seed)
    total = bad.count + sum(len(part.rows) for part in parts)
    bad.refuse(total, skip=source.skip_bad_rows, hint=forms_hint())
    return TrainingData(
        shape=_one_shape(parts),
        rows=tuple(row for row, _ in drawn),
        places=tuple(place for _, place in drawn),
        forms={part.origin: part.form.name for part in parts},
        note=f"skipped, as told: {bad.told(total)}" if bad.count else "",
    )


def _records(one: _Set, hub: HubReader | None) -> Iterator[tuple[str, Iterable[Located]]]:
    if one.hub is not None:
        assert hub is not None, "data sets of the hub are read by the training process"
        yield str(one.hub.hub), hub(one.hub)
    for path in one.paths:
        yield path, read_file(Path(path))


def _part(origin: str, records: Iterable[Located], choice: FormChoice | Form, bad: BadRows) -> _Part:
    """The rows of one file in the form of ``choice``; those that are not in it go to ``bad``."""
    stream = iter(records)
    first = list(islice(stream, LOOKED_AT))
    if not first:
        raise DataError(f"{origin} holds no rows", hint=forms_hint(), field="data")
    form = choice if isinstance(choice, Form) else FORMS[choice] if choice != "auto" else _detected(first, origin)
    rows = []
    for located in chain(first, stream):
        place = Place(origin, located.line, located.row)
        try:
            rows.append((_row(located, form), place))
        except BadRowError as error:
            bad.add(place, str(error))
    return _Part(origin, form, tuple(rows))


def _detected(first: Sequence[Located], origin: str) -> Form:
    """The form of the first row that has a known one."""
    for located in first:
        if (name := detect(located.value)) is not None:
            return FORMS[name]
    shown = first[0]
    why = shown.problem
    if not why:
        keys = ", ".join(shown.value) if isinstance(shown.value, Mapping) else type(shown.value).__name__
        why = f"a row with {keys or 'no keys'} is in none of the known forms"
    raise DataError(f"{origin}, line {shown.line}: {why}", hint=forms_hint(), field="data")


def _row(located: Located, form: Form) -> Row:
    if located.problem:
        raise BadRowError(located.problem)
    try:
        return form.normalise(located.value)
    except BadRowError as error:
        # What a description says of a set goes before what its rows look like.
        other = detect(located.value) if form.told_by else None
        mixed = f" (it looks like {other}: one file holds one form)" if other not in (None, form.name) else ""
        raise BadRowError(f"not a row in {form.name} form: {error}{mixed}") from error


def _drawn(rows: tuple[tuple[Row, Place], ...], count: int | None, seed: int) -> Sequence[tuple[Row, Place]]:
    """``count`` of the rows in an order by chance; all of them first, then repeats, where there are fewer."""
    if count is None or not rows:
        return rows
    chance = random.Random(seed)  # noqa: S311 - a reproducible choice, nothing secret
    return [*chance.sample(rows, min(count, len(rows))), *chance.choices(rows, k=max(0, count - len(rows)))]


def _one_shape(parts: Sequence[_Part]) -> Shape:
    shapes = {part.form.shape for part in parts}
    if len(shapes) > 1:
        said = ", ".join(f"{part.origin} is {part.form.name}" for part in parts)
        raise DataError(f"the data files mix forms: {said}", hint="bring all files to one form", field="data")
    return shapes.pop()


def _characters(value: str | Sequence[Mapping[str, str]]) -> int:
    return len(value) if isinstance(value, str) else sum(len(message["content"]) for message in value)
