"""An objective is a weighted sum of named terms, each a function of `Outputs` and the batch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.config import LossConfig
from clip_jax.losses import Loss, replicated_sigmoid_loss, replicated_softmax_loss
from clip_jax.losses.objective import LOSSES, Objective, Term, kind_for, make_objective
from clip_jax.models.clip import Outputs

UNIFORMITY = Loss(
    name="uniformity",
    function=lambda outputs, batch: jnp.square(outputs.image @ outputs.image.T).mean(),
)
READS_TOKENS = Loss(
    name="reads_tokens",
    function=lambda outputs, batch: (outputs.extra["hidden"] * batch["tokens"]).mean(),
    extra=("hidden",),
    batch=("tokens",),
)
WAYS = [("replicated", None), *itertools.product(("gather", "ring"), (None, 2))]


@pytest.fixture
def outputs(pairs):
    def make(batch: int = 32, **extra) -> Outputs:
        return Outputs(*pairs(batch), jnp.float32(9.0), jnp.float32(-3.0), extra)

    return make


def test_a_sum_of_terms_has_their_weights_and_logs_each_by_its_name(outputs):
    objective = make_objective(LossConfig(terms=("sigmoid=0.5", f"{__name__}:UNIFORMITY=2")))
    z = outputs()
    total, metrics = objective(z, {}, mesh=None)
    softmax = replicated_softmax_loss(*z[:3])
    sigmoid = replicated_sigmoid_loss(*z[:4])
    uniformity = jnp.square(z.image @ z.image.T).mean()
    assert metrics["loss/softmax"] == pytest.approx(float(softmax), rel=1e-6)
    assert metrics["loss/sigmoid"] == pytest.approx(float(sigmoid), rel=1e-6)
    assert metrics["loss/uniformity"] == pytest.approx(float(uniformity), rel=1e-6)
    assert total == pytest.approx(float(softmax + 0.5 * sigmoid + 2 * uniformity), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (8, 1)], ids=str)
@pytest.mark.parametrize("kind", LOSSES)
def test_accuracies_are_those_of_the_whole_matrix_however_the_devices_meet(
    kind, shape, mesh, outputs
):
    z, on = outputs(), mesh(*shape)
    cosines_BB = z.image @ z.text.T
    own_B = np.arange(len(cosines_BB))
    expected = {
        "accuracy_image_to_text": (cosines_BB.argmax(axis=1) == own_B).mean(),
        "accuracy_text_to_image": (cosines_BB.argmax(axis=0) == own_B).mean(),
    }
    assert 0 < expected["accuracy_image_to_text"] < 1

    def losses_of(z):
        objectives = [make_objective(LossConfig(kind=kind, distributed=d, tile=t)) for d, t in WAYS]
        evaluated = [objective(z, {}, mesh=on)[1] for objective in objectives]
        trained = [
            jax.value_and_grad(lambda z, o=objective: o(z, {}, mesh=on), has_aux=True)(z)[0][1]
            for objective in objectives
        ]
        return evaluated + trained

    rows = NamedSharding(on, P(on.axis_names))
    z = z._replace(image=jax.device_put(z.image, rows), text=jax.device_put(z.text, rows))
    for metrics in jax.jit(losses_of)(z):
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, abs=1e-6)


def test_equal_captions_are_no_error(outputs):
    z = outputs(8)
    z = z._replace(image=jnp.tile(z.image[:1], (8, 1)), text=jnp.tile(z.text[:1], (8, 1)))
    for kind in LOSSES:
        _, metrics = make_objective(LossConfig(kind=kind))(z, {}, mesh=None)
        assert metrics["accuracy_image_to_text"] == metrics["accuracy_text_to_image"] == 1


def test_a_term_gets_the_arrays_that_it_names_and_no_others(outputs):
    seen = {}

    def look(outputs, batch):
        seen.update(extra=set(outputs.extra), batch=set(batch))
        return jnp.float32(0)

    loss = Loss(name="look", function=look, extra=("hidden",), batch=("tokens",))
    z = outputs(hidden=jnp.ones((32, 3)), unread=jnp.ones((32, 3)))
    batch = {"tokens": jnp.ones((32, 3)), "image": jnp.ones(32)}
    objective = Objective((Term(loss, 1.0),))
    objective(z, batch, mesh=None)
    assert seen == {"extra": {"hidden"}, "batch": {"tokens"}}
    assert set(objective.keep_read(z).extra) == {"hidden"}


def test_what_a_term_lacks_is_named(outputs):
    objective = Objective((Term(READS_TOKENS, 1.0),))
    with pytest.raises(
        ValueError, match=r"reads_tokens reads \['hidden'\] of Outputs.extra.*other"
    ):
        objective(outputs(other=jnp.ones(32)), {"tokens": 1}, mesh=None)
    with pytest.raises(ValueError, match=r"reads_tokens reads \['tokens'\] of the batch"):
        objective(outputs(hidden=jnp.ones(32)), {}, mesh=None)


def test_a_term_that_is_not_one_number_is_refused(outputs):
    loss = Loss(name="rows", function=lambda outputs, batch: outputs.image.sum(axis=1))
    with pytest.raises(ValueError, match=r"rows returned an array of shape \(32,\)"):
        Objective((Term(loss, 1.0),))(outputs(), {}, mesh=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sigmod"}, r"loss.kind='sigmod' is not one of .* 'sigmoid'"),
        ({"kind": "math:tau"}, r"loss.kind='math:tau' is a float"),
        ({"terms": ("sigmoid",)}, r"loss.terms has 'sigmoid': write NAME=WEIGHT"),
        ({"terms": ("sigmoid=nan",)}, r"write NAME=WEIGHT"),
        ({"terms": ("sigmoid=0",)}, r"write NAME=WEIGHT"),
        ({"terms": ("softmax=1",)}, r"name softmax more than once"),
    ],
)
def test_terms_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_objective(LossConfig(**settings))


def test_only_the_trained_scalars_of_a_model_can_be_needed():
    with pytest.raises(ValueError, match="needs tau"):
        Loss(name="odd", function=len, scalars={"tau": 1.0})


def test_the_first_term_says_where_a_scalar_starts():
    objective = make_objective(LossConfig(terms=("sigmoid=1",)))
    assert objective.scalars == {"logit_scale": math.log(1 / 0.07), "logit_bias": -10.0}
    assert kind_for({"image", "text", "logit_scale"}) == "softmax"
    assert kind_for(objective.scalars) == "sigmoid"


def test_an_evaluation_leaves_out_by_name_what_embeddings_alone_do_not_give():
    terms = (Term(LOSSES["sigmoid"], 1.0), Term(READS_TOKENS, 1.0), Term(UNIFORMITY, 3.0))
    kept, left_out = Objective(terms).of_embeddings(tile=4)
    assert (kept.terms, kept.tile, left_out) == ((terms[0], terms[2]), 4, ["reads_tokens"])
    assert Objective(terms[1:2]).of_embeddings() == (None, ["reads_tokens"])
