"""Predicates on table columns, for ``--where`` and ``select``: parsed into a small tree, never evaluated as code.

    lr < 1e-3 and activation in ['relu', 'tanh'] and not (test_acc >= 0.9 or val_acc == null)

A name is a column, or the unique end of a dotted one (``lr`` for ``training.optimizer.lr``); names that are not plain
words stand in backquotes. A missing value equals nothing and has no order: ``==``, ``in`` and ``<`` are false for it,
``!=`` and ``not in``, the exact negations, true. ``== null`` and ``!= null`` ask whether one is missing.

What people know from SQL is read too: words in any case (``AND``), ``is null``, ``is not null``, ``in (1, 2)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.comparison import SIGNS, Column, column_of_array, column_of_series, compare, kind_of, mismatch
from zoogen.core.errors import UserError, suggest

if TYPE_CHECKING:
    import pandas as pd

MOST_CHARACTERS = 100_000
MOST_DEPTH = 50

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<quoted>`[^`]+`)
      | (?P<word>[^\W\d]\w*(?:\.\w+)*)
      | (?P<sign>==|!=|<>|<=|>=|<|>|\(|\)|\[|\]|,)
    )""",
    re.VERBOSE,
)
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_KEYWORDS = {"and", "or", "not", "in", "is", *_CONSTANTS}
_HINTS = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not"}
_COMPARED = re.compile(r"[=<>]\s*`?$")
_NO_NUMBERS = {
    "nan": "a missing value is found with '== null'",
    "inf": "'> 1e308' and '< -1e308' find infinite numbers",
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


def parse(text: str) -> Predicate:
    """Parse a predicate.

    Raises:
        UserError: it is not one; the message points at the place.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"a predicate may have {MOST_CHARACTERS} characters, this one has {len(text)}")
    return _Parser(text).parse()


@dataclass(frozen=True)
class Predicate:
    """A parsed predicate; make one with ``parse``."""

    text: str
    _root: _Node

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names as written, each once, in order."""
        return tuple(dict.fromkeys(name.name for name in self._root.names()))

    def resolve(self, columns: Iterable[str]) -> dict[str, str]:
        """Name as written -> the column it means, so that a reader loads only those.

        Raises:
            UserError: a name fits no column or several.
        """
        known = list(columns)
        return {name.name: self._resolve(name, known) for name in self._root.names()}

    def mask(self, frame: pd.DataFrame) -> np.ndarray:
        """bool [rows]: the rows for which it holds.

        Raises:
            UserError: a name fits no column or several, or a column's values do not compare with the literal.
        """
        found = self.resolve(map(str, frame.columns))
        columns = {name: column_of_series(frame[column]) for name, column in found.items()}
        return self._root.mask(_Table(self.text, columns, len(frame)))

    def evaluate(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """As ``mask``, on arrays of one length; None and NaN are missing.

        Raises:
            UserError: as ``mask``.
        """
        found = self.resolve(columns)
        arrays = {name: column_of_array(np.asarray(columns[column])) for name, column in found.items()}
        return self._root.mask(_Table(self.text, arrays, len(next(iter(columns.values()), ()))))

    def _resolve(self, name: _Name, columns: list[str]) -> str:
        if name.name in columns:
            return name.name
        parts = name.name.split(".")
        fitting = [c for c in columns if c.split(".")[-len(parts) :] == parts]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            what = f"{name.name!r} could be any of {', '.join(sorted(fitting))}; write more of it"
        else:
            if hint := _NO_NUMBERS.get(name.name.lower()):
                raise _error(self.text, name.place, f"{name.name!r} is no value here; {hint}")
            # Behind a comparison it is mostly a text without its quotes.
            text = f"; a text stands in quotes: '{name.name}'" if _COMPARED.search(self.text[: name.place]) else ""
            what = f"unknown name {name.name!r}{text}\n{suggest(name.name, columns)}"
        raise _error(self.text, name.place, what)


def _error(text: str, place: int, what: str) -> UserError:
    first, _, rest = what.partition("\n")
    start = max(0, place - 60)
    shown = text[start : place + 60].replace("\n", " ")
    pointed = f"predicate, column {place + 1}: {first}\n    {shown}\n    {' ' * (place - start)}^"
    return UserError(f"{pointed}\n{rest}" if rest else pointed)


@dataclass(frozen=True)
class _Table:
    text: str
    columns: Mapping[str, Column]
    rows: int


@dataclass(frozen=True)
class _Literal:
    value: Any
    place: int


@dataclass(frozen=True)
class _Name:
    name: str
    place: int


class _Node:
    def names(self) -> list[_Name]:
        raise NotImplementedError

    def mask(self, table: _Table) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class _Comparison(_Node):
    left: _Name | _Literal
    sign: str
    right: _Name | _Literal
    place: int

    def names(self) -> list[_Name]:
        return [side for side in (self.left, self.right) if isinstance(side, _Name)]

    def mask(self, table: _Table) -> np.ndarray:
        left, sign, right = self.left, self.sign, self.right
        if isinstance(left, _Literal):
            left, sign, right = right, _MIRRORED[sign], left
        assert isinstance(left, _Name)
        column = table.columns[left.name]
        if isinstance(right, _Name):
            return self._columns(table, column, table.columns[right.name], sign)
        if right.value is None:
            if sign not in ("==", "!="):
                raise _error(table.text, self.place, f"null has no order; write '{left.name} == null'")
            return column.missing if sign == "==" else ~column.missing
        self._refuse(table, left.name, column.kind, kind_of(right.value), repr(right.value), sign)
        return compare(sign, column, Column.constant(right.value, table.rows))

    def _columns(self, table: _Table, left: Column, right: Column, sign: str) -> np.ndarray:
        assert isinstance(self.left, _Name)
        assert isinstance(self.right, _Name)
        self._refuse(table, self.left.name, left.kind, right.kind, f"column {self.right.name!r}", sign)
        return compare(sign, left, right)

    def _refuse(self, table: _Table, name: str, kind: str, other: str, what: str, sign: str) -> None:
        problem = mismatch(kind, other, what, sign)
        if problem:
            raise _error(table.text, self.place, f"{name!r} holds {problem}")


@dataclass(frozen=True)
class _Among(_Node):
    name: _Name
    options: tuple[_Literal, ...]
    negated: bool
    place: int

    def names(self) -> list[_Name]:
        return [self.name]

    def mask(self, table: _Table) -> np.ndarray:
        column = table.columns[self.name.name]
        found = np.zeros(table.rows, bool)
        if column.kind == "text" and all(isinstance(o.value, str) for o in self.options):
            known = {o.value for o in self.options}  # many ids: one pass instead of one per option
            found = np.array([v in known for v in column.values], bool)
        else:
            for option in self.options:
                found |= _Comparison(self.name, "==", option, option.place).mask(table)
        return ~found if self.negated else found


@dataclass(frozen=True)
class _Joined(_Node):
    every: bool
    parts: tuple[_Node, ...]

    def names(self) -> list[_Name]:
        return [name for part in self.parts for name in part.names()]

    def mask(self, table: _Table) -> np.ndarray:
        masks = [part.mask(table) for part in self.parts]
        return np.logical_and.reduce(masks) if self.every else np.logical_or.reduce(masks)


@dataclass(frozen=True)
class _Not(_Node):
    inner: _Node

    def names(self) -> list[_Name]:
        return self.inner.names()

    def mask(self, table: _Table) -> np.ndarray:
        return ~self.inner.mask(table)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int


class _Parser:
    """Recursive descent: or < and < not < comparison; the depth of nesting is bounded."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._tokenize())
        self._at = 0
        self._depth = 0

    def parse(self) -> Predicate:
        root = self._or()
        if self._now.kind != "end":
            raise self._wrong("expected 'and', 'or' or the end")
        return Predicate(self._text, root)

    def _tokenize(self) -> Iterable[_Token]:
        place = 0
        end = len(self._text.rstrip())
        while place < end:
            match = _TOKEN.match(self._text, place)
            if match is None:
                place += len(self._text[place:]) - len(self._text[place:].lstrip())
                wrong = self._text[place]
                hint = f"; write {_HINTS[wrong]!r}" if wrong in _HINTS else ""
                what = f"{wrong!r} starts a text that has no end" if wrong in "'\"`" else f"unexpected {wrong!r}{hint}"
                raise _error(self._text, place, what)
            kind = str(match.lastgroup)
            text = match[kind]
            if kind == "word" and text.lower() in _KEYWORDS:
                yield _Token("keyword", text.lower(), match.start(kind))
            else:
                yield _Token(kind, text, match.start(kind))
            place = match.end()
        yield _Token("end", "", end)

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> _Token | None:
        token = self._now
        if token.text in texts and token.kind in ("keyword", "sign"):
            self._at += 1
            return token
        return None

    def _wrong(self, what: str) -> UserError:
        found = f", found {self._now.text!r}" if self._now.kind != "end" else ""
        return _error(self._text, self._now.place, what + found)

    def _or(self) -> _Node:
        return self._join("or", self._and)

    def _and(self) -> _Node:
        return self._join("and", self._not)

    def _join(self, word: str, part: Callable[[], _Node]) -> _Node:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else _Joined(word == "and", tuple(parts))

    def _not(self) -> _Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._wrong(f"more than {MOST_DEPTH} levels of nesting")
        if self._take("not"):
            node: _Node = _Not(self._not())
        elif self._take("("):
            node = self._or()
            if not self._take(")"):
                raise self._wrong("expected ')'")
        else:
            node = self._comparison()
        self._depth -= 1
        return node

    def _comparison(self) -> _Node:
        left = self._operand()
        if sign := self._take("is"):
            return self._is(left, sign)
        negated = self._take("not")
        word = self._take("in")
        if negated and not word:
            raise self._wrong("expected 'in' after 'not'")
        if word:
            if isinstance(left, _Literal):
                raise _error(self._text, left.place, "a column name goes before 'in'")
            return _Among(left, self._list(), bool(negated), word.place)
        parts: list[_Node] = []
        while sign := self._take(*SIGNS):
            right = self._operand()
            if isinstance(left, _Literal) and isinstance(right, _Literal):
                raise _error(self._text, left.place, "this compares two constants; name a column")
            parts.append(_Comparison(left, sign.text, right, sign.place))
            left = right
        if not parts:
            alone = self._now.kind == "end" or self._now.text in ("and", "or", ")")
            hint = f"; for true or false write '{left.name} == true'" if alone and isinstance(left, _Name) else ""
            raise self._wrong(f"expected a comparison (== != < <= > >= in){hint}")
        return parts[0] if len(parts) == 1 else _Joined(True, tuple(parts))

    def _is(self, left: _Name | _Literal, word: _Token) -> _Node:
        if isinstance(left, _Literal):
            raise _error(self._text, left.place, "a column name goes before 'is'")
        sign = "!=" if self._take("not") else "=="
        null = self._take("null", "none")
        if not null:
            raise self._wrong(f"expected 'null' after 'is'; compare values with {sign!r}")
        return _Comparison(left, sign, _Literal(None, null.place), word.place)

    def _operand(self) -> _Name | _Literal:
        token = self._now
        if token.kind in ("quoted", "word"):
            self._at += 1
            return _Name(token.text.strip("`"), token.place)
        return self._literal("a column name or a value")

    def _literal(self, wanted: str) -> _Literal:
        token = self._now
        if token.kind == "number":
            whole = re.fullmatch(r"[+-]?[\d_]+", token.text)
            value: Any = int(token.text) if whole and len(token.text) <= 30 else float(token.text)
        elif token.kind == "text":
            value = token.text[1:-1]
        elif token.kind == "keyword" and token.text in _CONSTANTS:
            value = _CONSTANTS[token.text]
        elif token.kind == "word" and (hint := _NO_NUMBERS.get(token.text.lower())):
            raise _error(self._text, token.place, f"{token.text!r} is no value here; {hint}")
        else:
            raise self._wrong(f"expected {wanted}")
        self._at += 1
        return _Literal(value, token.place)

    def _list(self) -> tuple[_Literal, ...]:
        opened = self._take("[", "(")
        if not opened:
            raise self._wrong("expected a list of values in [] or ()")
        end = "]" if opened.text == "[" else ")"
        found: list[_Literal] = []
        while not self._take(end):
            if found and not self._take(","):
                raise self._wrong(f"expected ',' or {end!r}")
            if found and self._take(end):
                break
            found.append(self._literal("a value (text in quotes)"))
        return tuple(found)
