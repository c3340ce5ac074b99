"""Arguments that cannot be meant are refused with a line that names them."""

import numpy as np
import pytest

from clip_jax.losses import sigmoid_loss, softmax_loss

Z_BE = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Z_BE[0], Z_BE, 1.0), {}, "z_image_BE"),
        ((Z_BE, Z_BE[:3], 1.0), {}, r"\(3, 3\)"),
        ((Z_BE, Z_BE[:, :2], 1.0), {}, r"\(4, 2\)"),
        ((Z_BE[:0], Z_BE[:0], 1.0), {}, "no pair"),
        ((Z_BE.astype(int), Z_BE, 1.0), {}, "int64"),
        ((Z_BE, Z_BE, np.ones(4)), {}, "logit_scale"),
        ((Z_BE, Z_BE, 1.0), {"distributed": "rign"}, "'rign'"),
        ((Z_BE, Z_BE, 1.0), {"tile": 0}, "tile=0"),
        ((Z_BE, Z_BE, 1.0), {"tile": 2.5}, "tile=2.5"),
        ((Z_BE, Z_BE, 1.0), {"tile": 2, "distributed": "replicated"}, "replicated"),
    ],
)
def test_a_wrong_argument_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        softmax_loss(*arguments, **options)


def test_a_model_without_bias_is_refused_by_the_sigmoid_loss():
    with pytest.raises(ValueError, match="logit_bias is None"):
        sigmoid_loss(Z_BE, Z_BE, 1.0, None)
