"""Where a program keeps what stands for the weights of noisy layers, and the C code that finds it.

While a step trains, that is the variance which each weight's noise adds per square of its input, found once because
weights do not change within a step; while a part is evaluated, the weights without those that are little but noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoogen.core.layout import Layout
from zoogen.train.population.native.graph import Graph, Noise, Operation
from zoogen.train.sparsify.variational import K1, K2, K3, TINY


class NoisyWeights:
    """Vectors for the weights, and noisy biases, of all noisy layers, one layer after the other.

    Args:
        graph: The network.
        layout: Of its rows.

    Attributes:
        vectors: How many there are.
    """

    def __init__(self, graph: Graph, layout: Layout) -> None:
        self._entries = {e.name: e for e in layout.entries}
        self._operations = {number: graph.operations[number] for number in graph.noisy}
        self._places: dict[tuple[int, str], int] = {}
        self.vectors = 0
        for number, o in self._operations.items():
            for role, _ in _noisy_tensors(o):
                self._places[number, role] = self.vectors
                self.vectors += self._entries[o.tensors[role]].size

    def place(self, number: int, role: str, otherwise: str = "0") -> str:
        """Of a tensor of operation ``number``, in C; ``otherwise`` where it has no noise."""
        at = self._places.get((number, role))
        return otherwise if at is None else f"s + NOISY + {at}"

    @property
    def constants(self) -> Mapping[str, str]:
        """What variational.h needs to know."""
        return {name: f"((real){value!r})" for name, value in {"K1": K1, "K2": K2, "K3": K3, "TINY": TINY}.items()}

    def functions(self) -> str:
        """``start_step(a, to)``, ``finish_step(a)`` and ``start_evaluation(a, to)``, which entry.h calls."""
        start, finish, evaluate = [], [], []
        for number, o in self._operations.items():
            assert o.noise is not None
            for role, log_sigma2 in _noisy_tensors(o):
                start.append(f"find_variances({self._arguments(number, role, log_sigma2, o.noise)});")
                removed = f"{self._arguments(number, role, log_sigma2, o.noise)}, {_real(o.noise.threshold)}"
                evaluate.append(f"remove_noisy({removed});")
                w, s, n = self._offset(o, role), self._offset(o, log_sigma2), self._entries[o.tensors[role]].size
                finish.append(f"variances_back(w + {w}, w + {s}, g + {w}, g + {s}, {n}, {_real(o.noise.bound)}, kl);")
        weights = "const V *w = (const V *)a->weights;"
        return "\n".join(
            [
                f"static void start_step(const Args *a, V *to) {{\n{weights}",
                *start,
                f"}}\nstatic void finish_step(const Args *a) {{\n{weights}",
                "V *g = (V *)a->gradients;\nconst V kl = lanes_of(a->kl_weights);",
                *finish,
                f"}}\nstatic void start_evaluation(const Args *a, V *to) {{\n{weights}",
                *evaluate,
                "}",
            ]
        )

    def _arguments(self, number: int, role: str, log_sigma2: str, noise: Noise) -> str:
        o = self._operations[number]
        size = self._entries[o.tensors[role]].size
        tensors = f"w + {self._offset(o, role)}, w + {self._offset(o, log_sigma2)}"
        return f"{tensors}, to + {self._places[number, role]}, {size}, {_real(noise.bound)}"

    def _offset(self, o: Operation, role: str) -> int:
        return self._entries[o.tensors[role]].offset


def _noisy_tensors(o: Operation) -> list[tuple[str, str]]:
    """Roles of the tensors that have noise, each with the role of its log sigma2."""
    pairs = (("weight", "log_sigma2"), ("bias", "log_sigma2_bias"))
    return [(role, log_sigma2) for role, log_sigma2 in pairs if log_sigma2 in o.tensors]


def _real(value: float) -> str:
    return f"(real){value!r}"
