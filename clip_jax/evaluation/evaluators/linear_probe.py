"""Logistic regression on frozen embeddings, its weight decay chosen on a part of the training set."""

import functools
from collections.abc import Callable, Sequence

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

# As CLIP_benchmark trains its probe, so that figures can be compared; K is an axis of probes.
DECAYS = np.logspace(-6, 2, 97)
FIRST, SPAN = range(0, 97, 16), 8  # of DECAYS: those that are tried first, and the search's steps
BATCH, EPOCHS, LEARNING_RATE = 64, 10, 0.1
HELD_OUT = 5  # one image of so many of a class chooses the weight decay
DRAWS = 3  # of start values and orders, whose mean is measured: one moves by a thousandth or two


def measure(data: Embedded) -> Evaluation:
    """Top-1 and mean-per-class accuracy of logistic regression (arXiv:2103.00020, A.3).

    As CLIP_benchmark: AdamW without warmup, its rate falling by a cosine. The weight decay is the
    best on a fifth of the training set: seven values far apart, then closer and closer around the
    best. The probe is then trained on all of the training set.
    """
    train, mesh = data.train_images(), data.encoder.mesh
    held = held_out(train.label_N)
    count = int(max(train.label_N.max(), data.label_N.max())) + 1
    fit_ = functools.partial(fit, classes=count, mesh=mesh, should_stop=data.should_stop)

    def accuracies(places: Sequence[int]) -> list[float]:
        heads_KSE = fit_(train.z_NE[~held], train.label_N[~held], DECAYS[list(places)])
        z_NE, label_N = train.z_NE[held], train.label_N[held]
        return [float((predict(h, z_NE, mesh=mesh) == label_N).mean()) for h in heads_KSE]

    decay = DECAYS[search(accuracies)]
    heads = [fit_(train.z_NE, train.label_N, [decay], seed=seed)[0] for seed in range(DRAWS)]
    z_NE = data.z_image_NE[data.labelled]
    right_RN = np.stack([predict(head, z_NE, mesh=mesh) == data.label_N for head in heads])
    right_N = right_RN.mean(axis=0)
    by_class = [float(right_N[data.label_N == label].mean()) for label in np.unique(data.label_N)]
    return Evaluation(
        metrics={
            "linear_probe_top1": float(right_N.mean()),
            "linear_probe_mean_per_class": float(np.mean(by_class)),
            "linear_probe_weight_decay": float(decay),
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


def search(accuracies: Callable[[Sequence[int]], Sequence[float]]) -> int:
    """The place in DECAYS with the best accuracy; of equals the weakest of those that are compared."""
    found: dict[int, float] = {}

    def best(places: Sequence[int]) -> int:
        new = [place for place in dict.fromkeys(places) if place not in found]
        found.update(zip(new, accuracies(new) if new else ()))
        return max(places, key=lambda place: found[place])

    peak, span = best(FIRST), SPAN
    while span:
        peak = best((max(peak - span, 0), peak, min(peak + span, len(DECAYS) - 1)))
        span //= 2
    return peak


def fit(
    z_NE: np.ndarray,
    label_N: np.ndarray,
    decays: Sequence[float] | np.ndarray,
    *,
    classes: int,
    mesh: Mesh,
    seed: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Train a probe for each weight decay, all from the same start and on the same batches.

    The images lie split over all devices. Each of them trains all probes, on batches that are put
    together for every one, so that the numbers do not depend on how many there are.

    Args:
      z_NE: (images, embedding).
      label_N: (images,) below `classes`.
      decays: K numbers.
      seed: of the start and of the order of images.

    Returns:
      (K, classes, embedding + 1) float32, the last column being the bias.
    """
    N, E = z_NE.shape
    rng, steps = np.random.default_rng(seed), -(-N // BATCH)
    rows, split, all_ = -N % mesh.size, sharding.batch_sharding(mesh), sharding.replicated(mesh)
    x_NE = put(np.pad(_with_one(z_NE), ((0, rows), (0, 0))), split)
    y_N = put(label_N.astype(np.int32), all_)
    start_SE = rng.uniform(-1, 1, (classes, E + 1)).astype(np.float32) / np.sqrt(E)
    state = _start(put(np.stack([start_SE] * len(decays)), all_))
    decay_K = put(np.asarray(decays, np.float32), all_)
    for epoch in range(EPOCHS):
        check_stop(should_stop)
        rows_TB = np.pad(rng.permutation(N), (0, -N % BATCH), constant_values=-1)
        rows_TB = put(rows_TB.reshape(steps, BATCH).astype(np.int32), all_)
        state = _epoch(mesh)(state, x_NE, y_N, rows_TB, decay_K, epoch)
    return np.asarray(state[0])


def predict(head_SE: np.ndarray, z_NE: np.ndarray, *, mesh: Mesh) -> np.ndarray:
    """The class with the highest score, (images,)."""
    _, best_N1 = nearest(_with_one(z_NE), head_SE, mesh=mesh)
    return best_N1[:, 0]


def _with_one(z_NE: np.ndarray) -> np.ndarray:
    return np.concatenate([z_NE, np.ones((len(z_NE), 1))], axis=1).astype(np.float32)


ADAM = optax.scale_by_adam()


@jax.jit
def _start(head_KSE: jax.Array) -> tuple:
    return head_KSE, ADAM.init(head_KSE)


@functools.lru_cache(maxsize=8)
def _epoch(mesh: Mesh):
    """One pass over the images in batches; a row of -1 fills up the last one."""

    def loss(head_KSE: jax.Array, x_BE: jax.Array, y_B: jax.Array, known_B: jax.Array) -> jax.Array:
        logits_KBS = jnp.einsum("be,kse->kbs", x_BE, head_KSE, precision=jax.lax.Precision.HIGHEST)
        y_KB = jnp.broadcast_to(y_B, logits_KBS.shape[:2])
        each_KB = optax.softmax_cross_entropy_with_integer_labels(logits_KBS, y_KB)
        return (each_KB * known_B[None, :]).sum() / known_B.sum()

    def epoch(state, x_NE, y_N, rows_TB, decay_K, number):
        T = len(rows_TB)

        def step(state, inputs):
            (head_KSE, adam), (rows_B, at) = state, inputs
            x_BE = jax.lax.with_sharding_constraint(x_NE[rows_B], sharding.replicated(mesh))
            grad_KSE = jax.grad(loss)(head_KSE, x_BE, y_N[rows_B], rows_B >= 0)
            update_KSE, adam = ADAM.update(grad_KSE, adam)
            rate = LEARNING_RATE * (1 + jnp.cos(jnp.pi * (number * T + at) / (EPOCHS * T))) / 2
            head_KSE = head_KSE * (1 - rate * decay_K[:, None, None]) - rate * update_KSE
            return (head_KSE, adam), None

        return jax.lax.scan(step, state, (rows_TB, jnp.arange(T)))[0]

    return jax.jit(epoch, donate_argnums=0, out_shardings=sharding.replicated(mesh))


LINEAR_PROBE = Evaluator(
    measure=measure,
    metrics={"linear_probe_top1": "higher", "linear_probe_mean_per_class": "higher"},
    needs=("classes", "train"),
    headline="linear_probe_top1",
)
