"""The layout of the Small CNN Zoo, with networks that NumPy trains and evaluates in TensorFlow's conventions.

Images are [n, height, width, channels], kernels [height, width, in, out]; a convolution moves by 2 and does not pad.
Training is gradient descent of the last layer: enough for accuracies that differ between steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
SHAPES = {
    "sequential/conv2d/bias:0": (16,),
    "sequential/conv2d/kernel:0": (3, 3, 1, 16),
    "sequential/conv2d_1/bias:0": (16,),
    "sequential/conv2d_1/kernel:0": (3, 3, 16, 16),
    "sequential/conv2d_2/bias:0": (16,),
    "sequential/conv2d_2/kernel:0": (3, 3, 16, 16),
    "sequential/dense/bias:0": (10,),
    "sequential/dense/kernel:0": (16, 10),
}
ACTIVATIONS = {"relu": lambda x: np.where(x > 0, x, 0), "tanh": np.tanh}
Variables = dict[str, np.ndarray]


def images(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Digits as grey images [count, 28, 28, 1] in [-1, 1], and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    large = np.kron(found.images[:count] / 8 - 1, np.ones((1, 3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2)), constant_values=-1)[..., None], found.target[:count]


def features(variables: Variables, x: np.ndarray, activation: str) -> np.ndarray:
    """What the last layer sees: [n, 16]."""
    for layer in ("conv2d", "conv2d_1", "conv2d_2"):
        kernel = variables[f"sequential/{layer}/kernel:0"].astype(np.float64)
        side = (x.shape[1] - 3) // 2 + 1
        out = np.zeros((len(x), side, side, kernel.shape[3])) + variables[f"sequential/{layer}/bias:0"]
        for i in range(3):
            for j in range(3):
                out += x[:, i : i + 2 * side - 1 : 2, j : j + 2 * side - 1 : 2] @ kernel[i, j]
        x = ACTIVATIONS[activation](out)
    return x.mean(axis=(1, 2))


def scores(variables: Variables, x: np.ndarray, activation: str) -> np.ndarray:
    dense = [variables[f"sequential/dense/{leaf}:0"].astype(np.float64) for leaf in ("kernel", "bias")]
    return features(variables, x, activation) @ dense[0] + dense[1]


def measure(variables: Variables, x: np.ndarray, classes: np.ndarray, activation: str) -> tuple[float, float]:
    """Accuracy and cross-entropy."""
    given = scores(variables, x, activation)
    logs = given - np.log(np.exp(given).sum(1, keepdims=True))
    return float((given.argmax(1) == classes).mean()), float(-logs[np.arange(len(x)), classes].mean())


def config(**changes) -> dict:
    base = {
        "activation": "relu",
        "b_init": "zeros",
        "dataset": "mnist",
        "dnn_architecture": "cnn",
        "dropout": 0.0532,
        "epochs": 86,
        "epochs_between_checkpoints": 20,
        "init_std": 0.0131,
        "l2reg": 3.1e-07,
        "learning_rate": 0.0012345678901234567,
        "num_layers": 3,
        "num_units": 16,
        "optimizer": "adam",
        "random_seed": 42,
        "train_fraction": 0.25,
        "w_init": "he_normal",
    }
    return {f"config.{name}": value for name, value in (base | changes).items()}


CONFIGS = {
    "/somewhere/9001/2": config(),
    "/somewhere/9001/5": config(activation="tanh", optimizer="rmsprop", dropout=0.0, train_fraction=1.0),
    "/somewhere/9001/7": config(w_init="orthogonal", learning_rate=1e-05, dropout=0.5),
}


def train(seed: int, activation: str) -> dict[int, Variables]:
    """Variables of every step."""
    rng = np.random.default_rng(seed)
    state = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in SHAPES.items()}
    x, classes = images()
    seen = features(state, x, activation)
    found = {}
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            found[step] = dict(state)
        odds = np.exp(seen @ state["sequential/dense/kernel:0"] + state["sequential/dense/bias:0"])
        error = odds / odds.sum(1, keepdims=True) - np.eye(10)[classes]
        for leaf, slope in (("kernel", seen.T @ error), ("bias", error.sum(0))):
            name = f"sequential/dense/{leaf}:0"
            state[name] = (state[name] - 0.5 * slope / len(x)).astype(np.float32)
    return found


def write_small_cnn_zoo(folder: Path, configs: dict[str, dict] = CONFIGS) -> dict[str, dict[int, Variables]]:
    """``weights.npy``, ``metrics.csv.gz`` and ``layout.csv``; returns the variables by model and step."""
    trained = {key: train(seed, own["config.activation"]) for seed, (key, own) in enumerate(configs.items())}
    # The published rows are in the order of their checkpoints' names: step 20 before step 3.
    places = sorted((f"{key}/permanent_ckpt-{step}", key, step) for key in trained for step in STEPS)
    x, classes = images()
    rows, vectors = [], []
    for _, key, step in places:
        state = trained[key][step]
        accuracy, loss = measure(state, x, classes, configs[key]["config.activation"])
        told = {"test_accuracy": accuracy, "test_loss": loss, "train_accuracy": accuracy / 2, "train_loss": loss * 2}
        rows.append({**configs[key], "modeldir": key, "step": step, **told, "laststep": step == STEPS[-1]})
        vectors.append(np.concatenate([state[name].ravel() for name in SHAPES]))
    folder.mkdir(parents=True)
    np.save(folder / "weights.npy", np.stack(vectors))
    pd.DataFrame(rows, index=[place for place, _, _ in places]).to_csv(folder / "metrics.csv.gz")
    write_layout(folder / "layout.csv")
    return trained


def write_layout(file: Path, **changes: dict) -> None:
    """The columns of every variable; ``changes`` are fields of the row of ``conv2d_1``'s kernel."""
    rows, start = [], 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        row = {"varname": name, "start_idx": start, "end_idx": start + size, "size": size, "shape": str(shape)}
        rows.append(row | (changes if name == "sequential/conv2d_1/kernel:0" else {}))
        start += size
    pd.DataFrame(rows).to_csv(file, index=False)


def torch_order(variables: Variables) -> dict[str, np.ndarray]:
    """By the names of zoogen, axes as torch has them."""
    owners = {"conv2d": "conv1", "conv2d_1": "conv2", "conv2d_2": "conv3", "dense": "fc"}
    found = {}
    for name, values in variables.items():
        _, layer, leaf = name.removesuffix(":0").split("/")
        if leaf == "bias":
            found[f"{owners[layer]}.bias"] = values
        else:
            found[f"{owners[layer]}.weight"] = np.moveaxis(values, (-1, -2), (0, 1))
    return found
