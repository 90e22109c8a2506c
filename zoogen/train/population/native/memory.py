"""Where values, their gradients and what layers keep lie in a program's scratch memory, counted in vectors.

Memory is shared where that is safe, because what does not fit into a core's second-level cache is slow.
"""

from __future__ import annotations

from collections import defaultdict

from zoogen.train.population.native.graph import ACTIVATIONS, Graph, Operation

# Their backward pass reads and writes element by element, so a gradient may take the place of the one it comes from.
_ELEMENTWISE = {*ACTIVATIONS.values(), "dropout", "batch_norm"}

# Their backward pass does not need what they put out, so its place is free for its gradient.
_FORGETFUL = {"conv", "linear", "add", "batch_norm"}


class Memory:
    """Hands out places for ``chunk`` samples of each value of a graph.

    Args:
        graph: The network.
        chunk: Samples that pass through together.
        skipped: Operations that do nothing, such as dropout where no model drops anything.
    """

    def __init__(self, graph: Graph, chunk: int, skipped: set[str]) -> None:
        self.vectors = 0
        self._graph = graph
        self._chunk = chunk
        self._root: dict[int, int] = {}
        self._users: dict[int, list[Operation]] = defaultdict(list)
        self._producer: dict[int, Operation] = {}
        self._values: dict[int, int] = {}
        self._gradients: dict[int, int] = {}
        self._kept: dict[int, int] = {}
        for o in graph.operations:
            if o.kind in skipped:
                self._root[o.out] = self.root(o.inputs[0])
            else:
                self._producer[o.out] = o
                for value in o.inputs:
                    self._users[self.root(value)].append(o)
        # Squares of the inputs of one noisy layer at a time, and then their gradients.
        widest = max((graph.size(graph.operations[n].inputs[0]) for n in graph.noisy), default=0)
        self.squares = self._take(widest * chunk)

    def root(self, value: int) -> int:
        """The value whose memory this one is: another shape of it, or what passes a skipped operation."""
        return self._root.get(value, value)

    def value(self, value: int) -> int:
        """Where a value lies."""
        root = self.root(value)
        if root not in self._values:
            self._values[root] = self._take(self._graph.size(root) * self._chunk)
        return self._values[root]

    def gradient(self, value: int) -> int:
        """Where its gradient lies."""
        root = self.root(value)
        if root not in self._gradients:
            self._gradients[root] = self._shared(root)
        return self._gradients[root]

    def kept(self, number: int, vectors: int) -> int:
        """Where operation ``number`` keeps what its backward pass needs."""
        if number not in self._kept:
            self._kept[number] = self._take(vectors)
        return self._kept[number]

    def writes_once(self, o: Operation) -> bool:
        """Whether a pooling gives every input at most one gradient, so that nothing has to be added up."""
        s = o.settings
        return len(self._users[self.root(o.inputs[0])]) == 1 and s["kernel"] == s["stride"] and s["padding"] == (0, 0)

    def _shared(self, root: int) -> int:
        users, producer = self._users[root], self._producer.get(root)
        if len(users) == 1:
            (user,) = users
            if user.kind in _ELEMENTWISE:
                return self.gradient(user.out)
            pooled = user.kind in ("max_pool", "avg_pool") and self.writes_once(user)
            if pooled and producer is not None and producer.kind in _FORGETFUL:
                return self.value(root)
        return self._take(self._graph.size(root) * self._chunk)

    def _take(self, vectors: int) -> int:
        start, self.vectors = self.vectors, self.vectors + vectors
        return start
