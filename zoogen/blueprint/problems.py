"""What is wrong with a blueprint and where: every problem with its file, line, column and remedy, all in one error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from zoogen.core.errors import UserError

SHOWN = 50  # problems printed; the error object carries all of them
WIDTH = 110  # characters of an offending line that are shown


@dataclass(frozen=True, eq=False)
class Source:
    """A text that blueprint values come from: a file, or one ``--set`` option (which has no lines of its own)."""

    name: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Position:
    """A place in a source; lines and columns count from 1, and line 0 is the source as a whole."""

    source: Source
    line: int = 0
    column: int = 0


@dataclass(frozen=True)
class Problem:
    """One mistake: ``help`` says what is known and what to write instead."""

    position: Position
    message: str
    help: str = ""

    def __str__(self) -> str:
        at = self.position
        if not at.line:
            head = f"{at.source.name}: {self.message}"
            return f"{head}\n{self.help}" if self.help else head
        parts = [f"{at.source.name}:{at.line}:{at.column}: {self.message}", *_excerpt(at)]
        return "\n".join([*parts, self.help] if self.help else parts)


class BlueprintError(UserError):
    """A blueprint that cannot be used; ``problems`` holds all that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            shown.append(f"... and {len(self.problems) - SHOWN} more problems")
        super().__init__("\n\n".join(shown))


@dataclass
class Problems:
    """Collects problems; the same one met again (in another stratum, say) counts once."""

    found: dict[Problem, None] = field(default_factory=dict)

    def add(self, position: Position, message: str, help: str = "") -> None:
        self.found.setdefault(Problem(position, message, help))

    def stands_at(self, position: Position) -> bool:
        """Whether a problem of this place is recorded already."""
        return any(problem.position == position for problem in self.found)

    def __bool__(self) -> bool:
        return bool(self.found)

    def raise_any(self) -> None:
        """Raise what was collected, if anything, sorted by place."""
        if self.found:
            first_seen = {id(p.position.source): i for i, p in reversed(list(enumerate(self.found)))}
            raise BlueprintError(
                sorted(
                    self.found, key=lambda p: (first_seen[id(p.position.source)], p.position.line, p.position.column)
                )
            )


def _excerpt(at: Position) -> list[str]:
    """The offending line and a caret below the column; a long line is cut around it."""
    if at.line > len(at.source.lines):
        return []
    line, column = at.source.lines[at.line - 1].replace("\t", " "), at.column - 1
    if len(line) > WIDTH:
        start = max(0, min(column - WIDTH // 2, len(line) - WIDTH))
        line, column = line[start : start + WIDTH], column - start
    return [f"    {line}".rstrip(), f"    {' ' * column}^"]
