"""Logistic regression on frozen embeddings, its penalty chosen on a part of the training set."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.evaluation.encode import check_stop, put
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.ranking import nearest
from clip_jax.runs.results import Evaluation

# The penalties that CLIP_benchmark's sweep looks among, and where it starts.
PENALTIES = np.logspace(-6, 2, 97)
FIRST, SPAN = range(0, 97, 16), 8
HELD_OUT = 5  # one image of so many of a class chooses the penalty
STEPS, TOLERANCE = 300, 1e-5  # of L-BFGS: at most, and the gradient at which it stops


def measure(data: Embedded) -> Evaluation:
    """Top-1 and mean-per-class accuracy of logistic regression (arXiv:2103.00020, A.3).

    The penalty is the best on a fifth of the training set, found as CLIP_benchmark does: seven
    values far apart, then closer and closer around the best. The classifier is then trained on all
    of the training set.
    """
    train, mesh = data.train_images(), data.encoder.mesh
    held = held_out(train.label_N)
    count = int(max(train.label_N.max(), data.label_N.max())) + 1
    z_fit_NE, label_fit_N = train.z_NE[~held], train.label_N[~held]

    def accuracy(place: int) -> float:
        check_stop(data.should_stop)
        head_SE = fit(z_fit_NE, label_fit_N, count, PENALTIES[place], mesh=mesh)
        return float((predict(head_SE, train.z_NE[held], mesh=mesh) == train.label_N[held]).mean())

    penalty = PENALTIES[search(accuracy)]
    head_SE = fit(train.z_NE, train.label_N, count, penalty, mesh=mesh)
    right_N = predict(head_SE, data.z_image_NE[data.labelled], mesh=mesh) == data.label_N
    by_class = [float(right_N[data.label_N == label].mean()) for label in np.unique(data.label_N)]
    return Evaluation(
        metrics={
            "linear_probe_top1": float(right_N.mean()),
            "linear_probe_mean_per_class": float(np.mean(by_class)),
            "linear_probe_penalty": float(penalty),
        }
    )


def held_out(label_N: np.ndarray) -> np.ndarray:
    """(images,) bool: every fifth image of each class, in a random order that is always the same.

    A class of one image keeps it for fitting.
    """
    order = np.random.default_rng(0).permutation(len(label_N))
    held_N = np.zeros(len(label_N), bool)
    for label in np.unique(label_N):
        own = order[label_N[order] == label]
        held_N[own[: len(own) // HELD_OUT or int(len(own) > 1)]] = True
    return held_N


def search(accuracy: Callable[[int], float]) -> int:
    """The place in PENALTIES with the best accuracy; of equals the first that was tried."""
    found: dict[int, float] = {}

    def best(places) -> int:
        for place in places:
            if place not in found:
                found[place] = accuracy(place)
        return max(found, key=lambda place: found[place])

    peak, span = best(FIRST), SPAN
    while span:
        peak = best((max(peak - span, 0), peak, min(peak + span, len(PENALTIES) - 1)))
        span //= 2
    return peak


def fit(
    z_NE: np.ndarray, label_N: np.ndarray, classes: int, penalty: float, *, mesh: Mesh
) -> np.ndarray:
    """Minimise the mean cross-entropy plus penalty / 2 times the squared weights, without the bias.

    L-BFGS over all images at once, split over all devices.

    Args:
      z_NE: (images, embedding).
      label_N: (images,) below `classes`.

    Returns:
      (classes, embedding + 1) float32, the last column being the bias.
    """
    rows = -len(z_NE) % mesh.size
    split = sharding.batch_sharding(mesh)
    x_NE = put(np.pad(_with_one(z_NE), ((0, rows), (0, 0))), split)
    y_N = put(np.pad(label_N.astype(np.int32), (0, rows)), split)
    weight_N = put(np.pad(np.full(len(z_NE), 1 / len(z_NE), np.float32), (0, rows)), split)
    return np.asarray(_minimise(mesh, classes)(x_NE, y_N, weight_N, np.float32(penalty)))


def predict(head_SE: np.ndarray, z_NE: np.ndarray, *, mesh: Mesh) -> np.ndarray:
    """The class with the highest score, (images,)."""
    _, best_N1 = nearest(_with_one(z_NE), head_SE, mesh=mesh)
    return best_N1[:, 0]


def _with_one(z_NE: np.ndarray) -> np.ndarray:
    return np.concatenate([z_NE, np.ones((len(z_NE), 1))], axis=1).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _minimise(mesh: Mesh, classes: int):
    """Compiled once for a number of images and of classes, whatever the penalty is."""
    optimizer = optax.lbfgs()

    def minimise(x_NE: jax.Array, y_N: jax.Array, weight_N: jax.Array, penalty: jax.Array):
        def loss(head_SE: jax.Array) -> jax.Array:
            logits_NS = jnp.matmul(x_NE, head_SE.T, precision=jax.lax.Precision.HIGHEST)
            each_N = optax.softmax_cross_entropy_with_integer_labels(logits_NS, y_N)
            return (each_N * weight_N).sum() + penalty / 2 * (head_SE[:, :-1] ** 2).sum()

        def is_far(carry) -> jax.Array:
            _, _, gradient_SE, step = carry
            return (step < STEPS) & (jnp.abs(gradient_SE).max() > TOLERANCE)

        def move(carry):
            head_SE, state, _, step = carry
            value, gradient_SE = value_and_grad(head_SE, state=state)
            update, state = optimizer.update(
                gradient_SE, state, head_SE, value=value, grad=gradient_SE, value_fn=loss
            )
            return optax.apply_updates(head_SE, update), state, gradient_SE, step + 1

        value_and_grad = optax.value_and_grad_from_state(loss)
        start_SE = jnp.zeros((classes, x_NE.shape[1]), jnp.float32)
        carry = (start_SE, optimizer.init(start_SE), jnp.full_like(start_SE, jnp.inf), 0)
        return jax.lax.while_loop(is_far, move, carry)[0]

    return jax.jit(minimise, out_shardings=sharding.replicated(mesh))


LINEAR_PROBE = Evaluator(
    measure=measure,
    metrics={"linear_probe_top1": "higher", "linear_probe_mean_per_class": "higher"},
    needs=("classes", "train"),
    headline="linear_probe_top1",
)
