"""The kinds of measurement, one file each; a name in `evaluation.metrics` is one of these."""

from clip_jax.evaluation.evaluator import Evaluator
from clip_jax.evaluation.evaluators.association import ASSOCIATION
from clip_jax.evaluation.evaluators.choice import CHOICE
from clip_jax.evaluation.evaluators.few_shot import FEW_SHOT
from clip_jax.evaluation.evaluators.knn import KNN
from clip_jax.evaluation.evaluators.linear_probe import LINEAR_PROBE
from clip_jax.evaluation.evaluators.loss import LOSS
from clip_jax.evaluation.evaluators.macro_f1 import MACRO_F1
from clip_jax.evaluation.evaluators.multilabel import MULTILABEL
from clip_jax.evaluation.evaluators.retrieval import RETRIEVAL
from clip_jax.evaluation.evaluators.worst_group import WORST_GROUP
from clip_jax.evaluation.evaluators.zero_shot import ZERO_SHOT

EVALUATORS: dict[str, Evaluator] = {
    "association": ASSOCIATION,
    "choice": CHOICE,
    "few_shot": FEW_SHOT,
    "knn": KNN,
    "linear_probe": LINEAR_PROBE,
    "loss": LOSS,
    "macro_f1": MACRO_F1,
    "multilabel": MULTILABEL,
    "retrieval": RETRIEVAL,
    "worst_group": WORST_GROUP,
    "zero_shot": ZERO_SHOT,
}
