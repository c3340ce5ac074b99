"""The kinds of measurement, one file each; a name in `evaluation.metrics` is one of these."""

from clip_jax.evaluation.evaluator import Evaluator
from clip_jax.evaluation.evaluators.loss import LOSS
from clip_jax.evaluation.evaluators.retrieval import RETRIEVAL
from clip_jax.evaluation.evaluators.zero_shot import ZERO_SHOT

EVALUATORS: dict[str, Evaluator] = {"loss": LOSS, "retrieval": RETRIEVAL, "zero_shot": ZERO_SHOT}
