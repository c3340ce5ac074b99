"""An optimizer that the tree does not have: a step against the sign of a running average."""

import jax
import jax.numpy as jnp
import optax


def signs(learning_rate, *, b1=0.9, weight_decay=0.0, mask=None, patience=1):
    """Signum (arXiv:1802.04434), with decay."""
    del patience
    return optax.chain(
        optax.ema(b1, debias=False),
        optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates)),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
