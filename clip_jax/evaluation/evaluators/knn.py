"""Classification by the nearest images of a training set, without any training."""

import numpy as np
from jax.sharding import Mesh

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.ranking import ROWS, nearest
from clip_jax.runs.results import Evaluation

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as DINO has them
MOST_SCORES = 1 << 27  # that a device holds at once: 512 MB


def measure(data: Embedded) -> Evaluation:
    """Top-1 accuracy of the votes of the nearest training images."""
    train = data.train_images()
    votes_NS = knn_votes(
        data.z_image_NE[data.labelled],
        train.z_NE,
        train.label_N,
        mesh=data.encoder.mesh,
        should_stop=data.should_stop,
    )
    right_N = votes_NS.argmax(axis=1) == data.label_N
    return Evaluation(metrics={"knn_top1": float(right_N.mean())})


def knn_votes(
    z_query_QE: np.ndarray,
    z_train_NE: np.ndarray,
    label_N: np.ndarray,
    *,
    mesh: Mesh,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    should_stop=None,
) -> np.ndarray:
    """The votes of the nearest images for every class.

    Each of the nearest votes for its class with exp(cosine / temperature) (arXiv:1805.01978, with
    the numbers of arXiv:2104.14294).

    Args:
      z_query_QE: (queries, embedding) of unit length.
      z_train_NE: (images, embedding) of unit length.
      label_N: (images,) their classes.
      mesh: queries are split over all of its devices.

    Returns:
      (queries, classes) float32.
    """
    count = min(neighbours, len(z_train_NE))
    rows = max(1, min(ROWS, MOST_SCORES // len(z_train_NE)))
    score_Qk, index_Qk = nearest(
        z_query_QE, z_train_NE, count, mesh=mesh, rows=rows, should_stop=should_stop
    )
    votes_QS = np.zeros((len(z_query_QE), int(label_N.max()) + 1), np.float32)
    # Less the highest score, which all votes share: exp(1 / 0.07) is 1.6 million.
    weight_Qk = np.exp((score_Qk - score_Qk[:, :1]) / temperature)
    query_Qk = np.broadcast_to(np.arange(len(z_query_QE))[:, None], index_Qk.shape)
    np.add.at(votes_QS, (query_Qk, label_N[index_Qk]), weight_Qk)
    return votes_QS


KNN = Evaluator(
    measure=measure, metrics={"knn_top1": "higher"}, needs=("classes", "train"), headline="knn_top1"
)
