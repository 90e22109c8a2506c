"""What every trainer has to refuse, and what it owes a checkpoint: the same for all of them."""

from __future__ import annotations

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.core.records import Cohort, CohortState, Recording


def as_stored(predictions: np.ndarray, classes: int) -> np.ndarray:
    """Predicted classes in the type in which they are stored: uint8, or int32 where there are more than 256."""
    return predictions.astype(np.uint8 if classes <= 256 else np.int32)


def check_layout(cohort: Cohort, model_id: str, layout: Layout) -> None:
    """Refuse a network that is not the planned one.

    Raises:
        IntegrityError: its layout is another.
    """
    if layout.layout_id != cohort.layout_id:
        raise IntegrityError(
            f"model {model_id}: its network has layout {layout.layout_id}, the plan says {cohort.layout_id}\n"
            "the code of its architecture has changed since the zoo was planned; use the version that planned it"
        )


def check_models(cohort: Cohort, state: CohortState) -> None:
    """Refuse a state of other models.

    Raises:
        IntegrityError: the state is of other models.
    """
    if state.model_ids != cohort.model_ids:
        raise IntegrityError(
            f"the state to continue from holds {len(state.model_ids)} models, not the "
            f"{len(cohort.jobs)} of cohort {cohort.cohort_id}; delete it to start the cohort anew"
        )


def keeps_optimizer(recording: Recording, epoch: int) -> bool:
    """Whether a checkpoint of this epoch has optimizer states."""
    last = bool(recording.epochs) and epoch == recording.epochs[-1]
    return recording.optimizer == "all" or (recording.optimizer == "last" and last)
