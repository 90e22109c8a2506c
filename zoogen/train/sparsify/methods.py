"""Ways to make a network sparse, as recipes name them; each is frozen data, so it is part of a model's identity.

Pruning keeps a mask of the prunable weights (``Layout.prunable``): a removed weight is 0 and gets no gradient, as under
``torch.nn.utils.prune``. Variational dropout trains every weight's noise and removes weights that are noise only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from zoogen.core.registry import SPARSIFIERS

Scope = Literal["global", "layerwise", "channels"]


@SPARSIFIERS.register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """Magnitude pruning (Han et al. 2015, arXiv:1506.02626): the smallest weights are removed, the others train on.

    Attributes:
        sparsity: Share of the prunable weights (of each layer's channels, in that scope) that is removed in the end.
        scope: Rank the weights of the whole network together (``global``), of each layer apart (``layerwise``), or
            whole output channels by their L2 norm, of each layer but the last (``channels``).
        schedule: How ``rounds`` of pruning share the sparsity: each removes the same share of what is left
            (``geometric``, Frankle & Carbin 2019, arXiv:1803.03635), or most at first (``cubic``, Zhu & Gupta 2017,
            arXiv:1710.01878).
        rounds: Prunings, the first before the first epoch, then one every ``epochs / rounds`` epochs.
        rewind: After each pruning, weights that are left go back to this epoch of the parent.
    """

    per_model: ClassVar[frozenset[str]] = frozenset({"sparsity", "scope", "schedule", "rounds", "rewind"})
    masked: ClassVar[bool] = True

    sparsity: Annotated[float, Ge(0), Lt(1)]
    scope: Scope = "global"
    schedule: Literal["geometric", "cubic"] = "geometric"
    rounds: Annotated[int, Ge(1)] = 1
    rewind: Annotated[int, Ge(0)] | None = None

    @property
    def shaped_by_epochs(self) -> bool:
        """Whether an epoch depends on how many there are."""
        return self.rounds > 1

    def due(self, epoch: int, epochs: int) -> float | None:
        """The sparsity to prune to before the epoch after ``epoch`` completed ones; None where nothing is pruned."""
        starts = [r * epochs // self.rounds for r in range(self.rounds)]
        if epoch not in starts:
            return None
        share = (starts.index(epoch) + 1) / self.rounds
        if share == 1:
            return self.sparsity
        if self.schedule == "cubic":
            return self.sparsity * (1 - (1 - share) ** 3)
        return 1 - (1 - self.sparsity) ** share


@SPARSIFIERS.register("random")
@dataclass(frozen=True)
class Random:
    """Random weights are removed, the others go on training: the baseline of every pruning study.

    Attributes:
        sparsity: As in magnitude pruning.
        scope: As in magnitude pruning.
    """

    per_model: ClassVar[frozenset[str]] = frozenset({"sparsity", "scope"})
    masked: ClassVar[bool] = True
    shaped_by_epochs: ClassVar[bool] = False
    rewind: ClassVar[None] = None
    rounds: ClassVar[int] = 1

    sparsity: Annotated[float, Ge(0), Lt(1)]
    scope: Scope = "global"

    def due(self, epoch: int, epochs: int) -> float | None:
        """The sparsity to prune to before the epoch after ``epoch`` completed ones; None where nothing is pruned."""
        return self.sparsity if epoch == 0 else None


@SPARSIFIERS.register("variational-dropout")
@dataclass(frozen=True)
class VariationalDropout:
    """Sparse variational dropout (Molchanov et al. 2017, arXiv:1701.05369) as the 2022 zoos' twins were made.

    Every weight w has noise of variance sigma2 = alpha w**2, both trained; a weight whose log alpha reaches
    ``threshold`` is removed. The loss is the mean cross entropy + b KL, b = min(1, beta e / epochs) in the epoch
    after e.

    Attributes:
        threshold: Log alpha from which a weight counts as removed (3: dropout rate 0.95).
        log_sigma2: Log of the noise's variance at the start.
        clamp_linear: Bound of \\|log alpha\\| in linear layers.
        clamp_conv: Bound of \\|log alpha\\| in convolutions.
        beta: Slope of the weight of the KL term.
        kl_per_sample: Divide the KL term by the number of training samples, as the variational bound has it; then
            ``beta`` is better 1 or more. The published twins do not.
    """

    per_model: ClassVar[frozenset[str]] = frozenset()
    masked: ClassVar[bool] = False
    shaped_by_epochs: ClassVar[bool] = True
    rewind: ClassVar[None] = None
    rounds: ClassVar[int] = 1

    threshold: float = 3.0
    log_sigma2: float = -10.0
    clamp_linear: Annotated[float, Gt(0)] = 10.0
    clamp_conv: Annotated[float, Gt(0)] = 8.0
    beta: Annotated[float, Ge(0)] = 0.01
    kl_per_sample: bool = False

    def kl_weight(self, epoch: int, epochs: int, samples: int) -> float:
        """What the KL term is multiplied by in the epoch after ``epoch`` completed ones."""
        return min(1.0, self.beta * epoch / epochs) / (samples if self.kl_per_sample else 1)
