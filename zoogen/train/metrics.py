"""The metric columns of a checkpoint: their names and what they mean. Tables and documentation take them from here."""

from __future__ import annotations

METRICS: dict[str, str] = {
    "train_loss": (
        "Mean over the samples of the epoch of the loss that was optimised (label smoothing included), each sample "
        "taken at its own step, in nats; epoch 0: the same loss of the initial weights, evaluated on the training part."
    ),
    "train_acc": (
        "Share of the epoch's training samples classified correctly, each at its own step, in train mode and with "
        "augmentation; epoch 0: evaluated."
    ),
    "train_eval_loss": "Cross entropy on the training samples chosen by evaluate_train, in nats; only if asked for.",
    "train_eval_acc": "Accuracy on the training samples chosen by evaluate_train; only if asked for.",
    "val_loss": "Cross entropy (without label smoothing) on the validation part, in nats; NaN without such a part.",
    "val_acc": "Accuracy on the validation part; NaN without such a part.",
    "test_loss": "Cross entropy (without label smoothing) on the test part, in nats.",
    "test_acc": "Accuracy on the test part.",
    "test_acc_per_class": "Accuracy on the test samples of each class; NaN for a class without samples. [classes]",
    "learning_rate": "Learning rate of the last optimizer step of the epoch; epoch 0: of the first step.",
    "grad_norm": "L2 norm of the gradient of the epoch's last optimizer step, before clipping; NaN at epoch 0.",
    "weight_norm": "L2 norm of all trainable parameters together.",
}
"""Column -> meaning. Accuracies lie in [0, 1]. All evaluations use eval mode, no augmentation, and the precision of
the training. A value that was not measured is NaN."""

TRAINING_METRICS = ("train_loss", "train_acc", "learning_rate", "grad_norm")
"""Measured while an epoch runs; they belong to the state of a model (``CohortState.training_metrics``), since they
cannot be found again from its weights."""
