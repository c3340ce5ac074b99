"""A linear classifier of a few images a class, in closed form: least squares with an L2 penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.evaluation.encode import check_stop, put
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.ranking import nearest
from clip_jax.runs.results import Evaluation

SHOTS, SEEDS = (1, 5, 10, 25), 3
PENALTY = 2.0**10  # of big_vision's evaluator "fewshot_lsr", as are the next two
BIAS = 100.0  # a constant feature, so large that the penalty does not hold the bias back
LEAST_DEVIATION = 1e-5


def measure(data: Embedded) -> Evaluation:
    """Top-1 accuracy of a classifier of 1, 5, 10 and 25 images a class, the mean of three draws."""
    train, metrics = data.train_images(), {}
    least = int(np.bincount(train.label_N)[np.unique(train.label_N)].min())
    z_NE = data.z_image_NE[data.labelled]
    for shots in (shots for shots in SHOTS if shots <= least):
        found = []
        for seed in range(SEEDS):
            check_stop(data.should_stop)
            rows = draw(train.label_N, shots, seed)
            head = fit(train.z_NE[rows], train.label_N[rows], mesh=data.encoder.mesh)
            predicted_N = head.predict(z_NE, mesh=data.encoder.mesh)
            found.append(float((predicted_N == data.label_N).mean()))
        metrics[f"few_shot_{shots}_top1"] = float(np.mean(found))
    return Evaluation(metrics=metrics)


def draw(label_N: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` images of every class, drawn at random, the same ones each time."""
    order = np.random.default_rng(seed).permutation(len(label_N))
    by_class = order[np.argsort(label_N[order], kind="stable")]
    _, first, count = np.unique(label_N[by_class], return_index=True, return_counts=True)
    taken = [by_class[start : start + min(shots, size)] for start, size in zip(first, count)]
    return np.sort(np.concatenate(taken))


class Head:
    """A linear classifier of embeddings: scores are x @ weights, x whitened and with a bias."""

    def __init__(self, mean_E: np.ndarray, std_E: np.ndarray, weight_SE: np.ndarray):
        self._mean_E, self._std_E, self._weight_SE = mean_E, std_E, weight_SE

    def predict(self, z_NE: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        """The class with the highest score, (images,)."""
        x_NE = _with_bias((z_NE - self._mean_E) / self._std_E)
        _, best_N1 = nearest(x_NE, self._weight_SE, mesh=mesh)
        return best_N1[:, 0]


def fit(z_NE: np.ndarray, label_N: np.ndarray, *, mesh: Mesh, penalty: float = PENALTY) -> Head:
    """Ridge regression to +1 for the right class and -1 for the others.

    W = (X'X + penalty I)^-1 X'Y, with X whitened by its own mean and deviation. The products are
    taken over all devices; the small system is solved in float64. Where there are fewer images than
    features, the same W is X'(XX' + penalty I)^-1 Y.

    Args:
      z_NE: (images, embedding).
      label_N: (images,) their classes.
    """
    mean_E, std_E = z_NE.mean(axis=0), z_NE.std(axis=0) + LEAST_DEVIATION
    x_NE = _with_bias((z_NE - mean_E) / std_E)
    y_NS = 2.0 * np.eye(int(label_N.max()) + 1, dtype=np.float32)[label_N] - 1.0
    N, E = x_NE.shape
    if N < E:
        x = x_NE.astype(np.float64)
        weight_ES = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(N), y_NS)
    else:
        gram_EE, xy_ES = _products(x_NE, y_NS, mesh)
        weight_ES = np.linalg.solve(gram_EE + penalty * np.eye(E), xy_ES)
    return Head(mean_E, std_E, np.ascontiguousarray(weight_ES.T, np.float32))


def _with_bias(x_NE: np.ndarray) -> np.ndarray:
    bias_N1 = np.full((len(x_NE), 1), BIAS, np.float32)
    return np.concatenate([x_NE.astype(np.float32), bias_N1], axis=1)


def _products(x_NE: np.ndarray, y_NS: np.ndarray, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """X'X and X'Y as float64, the rows split over the devices; rows of zeros fill them up."""
    rows = -len(x_NE) % mesh.size
    split = sharding.batch_sharding(mesh)
    x, y = (put(np.pad(a, ((0, rows), (0, 0))).astype(np.float32), split) for a in (x_NE, y_NS))
    gram_EE, xy_ES = jax.device_get(_multiply(mesh)(x, y))
    return gram_EE.astype(np.float64), xy_ES.astype(np.float64)


@functools.lru_cache(maxsize=4)
def _multiply(mesh: Mesh):
    def products(x_NE: jax.Array, y_NS: jax.Array):
        exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return exact(x_NE.T, x_NE), exact(x_NE.T, y_NS)

    return jax.jit(products, out_shardings=sharding.replicated(mesh))


FEW_SHOT = Evaluator(
    measure=measure,
    metrics={f"few_shot_{shots}_top1": "higher" for shots in SHOTS},
    needs=("classes", "train"),
    headline="few_shot_10_top1",
)
