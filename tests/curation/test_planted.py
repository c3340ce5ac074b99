"""Of what is planted at least 99 % is found, and of all others less than 1 % is dropped."""

import numpy as np

from clip_jax.curation.filter import FilterConfig, decide
from clip_jax.curation.vectors import ArrayRows

ROWS, PLANTED = 1500, 100


class Pairs:
    def __init__(self, image, text):
        self.image, self.text = ArrayRows(image), ArrayRows(text)

    def __len__(self):
        return len(self.image)


def test_copies_test_images_and_wrong_captions_are_found(vectors, near, mesh):
    """Images come in 60 kinds, as those of a dataset do, at cosines of 0.5 to 0.85 within a kind; copies
    at 0.955 to 0.999, as re-encoded, resized and slightly cropped ones are. Scores of pairs are those of a
    trained model: 0.30 +- 0.03, of wrong captions 0.08 +- 0.04. Stored are float16.
    """
    rng = np.random.default_rng(0)
    kinds, dim = vectors(60, 128, seed=1), 128
    image = near(kinds[rng.integers(60, size=ROWS)], rng.uniform(0.72, 0.9, ROWS), rng)
    test = near(kinds[rng.integers(60, size=500)], rng.uniform(0.72, 0.9, 500), rng)
    planted = rng.permutation(np.arange(ROWS // 2, ROWS))
    copies, from_test, wrong = planted[: 3 * PLANTED].reshape(3, PLANTED)
    sources = rng.choice(ROWS // 2, PLANTED, replace=False)
    image[copies] = near(image[sources], rng.uniform(0.955, 0.999, PLANTED), rng)
    leaked = rng.integers(500, size=PLANTED)
    image[from_test] = near(test[leaked], rng.uniform(0.955, 0.999, PLANTED), rng)
    score = rng.normal(0.30, 0.03, ROWS)
    score[wrong] = rng.normal(0.08, 0.04, PLANTED)
    text = near(image, score, rng)
    assert image.shape == text.shape == (ROWS, dim)
    stored = [z.astype(np.float16) for z in (image, text, test)]
    cfg = FilterConfig(
        score_above=0.2,
        against=("test",),
        against_above=0.94,
        duplicates_above=0.94,
        pixels_above=None,
    )
    found = decide(Pairs(*stored[:2]), cfg, mesh(2), evaluation={"test": ArrayRows(stored[2])})
    clean = np.ones(ROWS, bool)
    clean[planted[: 3 * PLANTED]] = False
    planted_for = {"score": wrong, "evaluation": from_test, "duplicates": copies}
    for decision in found.decisions:
        dropped = np.zeros(ROWS, bool)
        dropped[decision.dropped_N] = True
        assert dropped[planted_for[decision.rule]].mean() >= 0.99, decision.rule
        assert dropped[clean].mean() < 0.01, decision.rule
