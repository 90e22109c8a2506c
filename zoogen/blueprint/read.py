"""YAML text -> nodes with places, refusing what YAML lets through: repeated keys, alias bombs, tags, octal numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import yaml

from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode, distinct
from zoogen.blueprint.problems import BlueprintError, Position, Problem, Problems, Source
from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.core.regular import open_regular

MAX_BYTES = 4 << 20
MAX_NODES = 20_000
MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"


def read_file(path: Path) -> str:
    """The text of a blueprint file.

    Raises:
        BlueprintError: there is no such file, it is no file, too large, or not UTF-8.
        EnvironmentFault: the file may not be read.
    """
    nowhere = Position(Source(str(path)))
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BlueprintError([Problem(nowhere, "no such file", _neighbours(path))]) from None
    except IntegrityError:
        hint = "give one of its blueprint files" if path.is_dir() else "save the blueprint as a file"
        raise BlueprintError([Problem(nowhere, "is a directory" if path.is_dir() else "is no file", hint)]) from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise BlueprintError([Problem(nowhere, f"larger than {MAX_BYTES >> 20} MiB: not a blueprint")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")) + 1
        lines = tuple(data.decode("utf-8", "replace").splitlines())
        at = Position(Source(str(path), lines), line, column)
        raise BlueprintError([Problem(at, "not UTF-8 text", "save the file as UTF-8")]) from None


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    names = sorted(p.name for p in path.parent.glob("*.y*ml"))
    if not names:
        return f"there are no .yaml files in {path.parent}"
    from zoogen.core.errors import suggest

    return suggest(path.name, names[:30])


def read_yaml(text: str, source: Source, problems: Problems, *, inline: bool = False) -> Node | None:
    """The one document of ``text`` as nodes; None where it is empty.

    Args:
        source: Where the text comes from.
        problems: Takes problems that do not hinder reading on, such as repeated keys.
        inline: The text is a ``--set`` value: every place is the option as a whole.

    Raises:
        BlueprintError: not YAML, an alias bomb, or nested too deep.
    """
    reader = _Reader(source, problems, inline)
    try:
        composer = _Composer(text)
        root = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        at = reader.at(error.problem_mark or error.context_mark)
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise BlueprintError([Problem(at, f"not valid YAML: {said}", _syntax_hint(text, at))]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Position(source, before.count("\n") + 1, error.position - before.rfind("\n"))
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise BlueprintError([Problem(at, f"not valid YAML: the character U+{code:04X} is not allowed")]) from None
    if root is None:
        return None
    reader.weigh(root)
    return reader.node(root)


def _syntax_hint(text: str, at: Position) -> str:
    line = text.splitlines()[at.line - 1] if 0 < at.line <= len(text.splitlines()) else ""
    if "\t" in line:
        return "the line has a tab; YAML wants spaces for indentation"
    if re.search(r"\w:[^\s/]", line):
        return "a colon needs a space after it: 'key: value'"
    return "check brackets, quotes and indentation on this line and the one above"


class _Composer(yaml.SafeLoader):
    """Composes nodes only; stops at nesting that no blueprint needs."""

    depth = 0
    count = 0

    def compose_node(self, parent, index):
        self.depth += 1
        self.count += 1
        mark = self.peek_event().start_mark
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        if self.count > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES:,} values", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Reader:
    def __init__(self, source: Source, problems: Problems, inline: bool) -> None:
        self.source, self.problems, self.inline = source, problems, inline
        self._done: dict[int, Node] = {}
        self._scalars = yaml.constructor.SafeConstructor()

    def at(self, mark: yaml.Mark | None) -> Position:
        if self.inline or mark is None:
            return Position(self.source)
        return Position(self.source, mark.line + 1, mark.column + 1)

    def weigh(self, root: yaml.Node) -> None:
        """Count values as if every alias were written out, without writing them out."""
        sizes: dict[int, int] = {}
        open_nodes: set[int] = set()

        def size(node: yaml.Node) -> int:
            key = id(node)
            if key in open_nodes:
                raise BlueprintError([Problem(self.at(node.start_mark), "an alias that contains itself")])
            if key not in sizes:
                open_nodes.add(key)
                sizes[key] = 1 + sum(map(size, _children(node)))
                open_nodes.discard(key)
            return sizes[key]

        total = size(root)
        if total > MAX_NODES:
            # The smallest aliased part that is too large on its own is the nearest to the cause.
            worst = min((n for n in _walk(root) if sizes[id(n)] > MAX_NODES), key=lambda n: sizes[id(n)])
            message = f"aliases expand to {_count(total)} values; at most {MAX_NODES:,} are read"
            raise BlueprintError([Problem(self.at(worst.start_mark), message)])

    def node(self, node: yaml.Node) -> Node:
        if id(node) not in self._done:
            if isinstance(node, yaml.ScalarNode):
                self._done[id(node)] = self._scalar(node)
            elif isinstance(node, yaml.SequenceNode):
                self._expect_tag(node, "seq")
                self._done[id(node)] = ListNode(self.at(node.start_mark), tuple(map(self.node, node.value)))
            elif isinstance(node, yaml.MappingNode):
                self._done[id(node)] = self._mapping(node)
        return self._done[id(node)]

    def _expect_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            self.problems.add(self.at(node.start_mark), f"the tag {node.tag!r} is not allowed in a blueprint")

    def _mapping(self, node: yaml.MappingNode) -> MapNode:
        self._expect_tag(node, "map")
        entries: dict = {}
        merged: list[MapNode] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += self._merged(value_node)
                continue
            key, value = self.node(key_node), self.node(value_node)
            if not isinstance(key, ScalarNode):
                self.problems.add(key.position, "a key must be a single value, not a list or mapping")
                continue
            known = distinct(key.value)
            if known in entries:
                first = entries[known][0].position.line
                where = f" (first on line {first})" if first else ""
                self.problems.add(
                    key.position,
                    f"the key {key.raw!r} is repeated{where}",
                    "remove one of them; plain YAML would silently keep the last",
                )
                continue
            entries[known] = (key, value)
        for other in merged:
            entries = {**{k: v for k, v in other.entries.items() if k not in entries}, **entries}
        return MapNode(self.at(node.start_mark), entries)

    def _merged(self, node: yaml.Node) -> list[MapNode]:
        value = self.node(node)
        found = value.items if isinstance(value, ListNode) else (value,)
        if not all(isinstance(item, MapNode) for item in found):
            self.problems.add(value.position, "'<<' merges mappings only", "write <<: *name of an anchored mapping")
        return [item for item in found if isinstance(item, MapNode)]

    def _scalar(self, node: yaml.ScalarNode) -> ScalarNode:
        at, raw, quoted = self.at(node.start_mark), node.value, node.style is not None
        kind = node.tag.removeprefix(_TAG)
        try:
            value, complaint = self._value(kind, node)
        except ValueError:
            value, complaint = None, (f"{_short(raw)} is not a number that can be read", "")
        if complaint:
            self.problems.add(at, *complaint)
        return ScalarNode(at, value, raw, plain=not quoted, broken=bool(complaint))

    def _value(self, kind: str, node: yaml.ScalarNode):
        raw = node.value
        if kind in ("str", "timestamp", "value", "merge"):
            return raw, None
        if kind == "null":
            return None, None
        if kind == "bool":
            return self._scalars.construct_yaml_bool(node), None
        if kind in ("int", "float") and ":" in raw:
            return None, (f"YAML 1.1 reads {raw} as a base-60 number", f'write it as text: "{raw}"')
        if kind == "int":
            if re.fullmatch(r"[-+]?0[0-7_]+", raw):
                text = f'YAML 1.1 reads {raw} as octal; write {raw.lstrip("+-0_") or "0"}, or "{raw}" for text'
                return None, (f"{raw} has a leading zero", text)
            value = self._scalars.construct_yaml_int(node)
            if not -(2**63) <= value < 2**63:
                return None, (f"{_short(raw)} does not fit in 63 bits", "")
            return value, None
        if kind == "float":
            number = self._scalars.construct_yaml_float(node)
            if not math.isfinite(number):
                return None, (f"{_short(raw)} is not finite", "a blueprint has no use for infinity and NaN")
            return number, None
        return None, (f"the tag {node.tag!r} is not allowed in a blueprint", "")


def _short(raw: str) -> str:
    return raw if len(raw) <= 40 else f"{raw[:20]}... ({len(raw)} characters)"


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else "more than 10^18"


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


def _walk(root: yaml.Node):
    """Every node once."""
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            todo += _children(node)
