"""Averages of models: their numbers, soups, and the run that is written."""

import jax
import numpy as np
import pytest

from clip_jax.cli.main import main
from clip_jax.data.tokenizers.clip_bpe import ClipTokenizer
from clip_jax.load import load_to_host
from clip_jax.models.clip import create_model
from clip_jax.runs.trained_variables import read_variables
from clip_jax.weights.average import average, greedy_soup, write_run


@pytest.fixture(scope="module")
def model():
    return create_model("ViT-test", vocab_size=ClipTokenizer.vocab_size)


@pytest.fixture(scope="module")
def variables(model):
    """Two models of one architecture."""
    init = jax.jit(model.init)
    images, tokens = np.zeros((1, 16, 16, 3), np.uint8), np.ones((1, 8), np.int32)
    return [jax.device_get(init(jax.random.key(seed), images, tokens)) for seed in (0, 1)]


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_an_average_is_the_weighted_sum_of_every_leaf(variables):
    first, second = variables
    mixed = average([first, second], (0.25, 0.75))
    expected = jax.tree.map(
        lambda a, b: (0.25 * np.float64(a) + 0.75 * np.float64(b)).astype(np.float32), first, second
    )
    assert_equal(mixed, expected)
    assert_equal(average([first, first, first], (1 / 3,) * 3), first)  # rounded once
    assert_equal(average([first, second], (1.0, 0.0)), first)


def test_weights_that_do_not_add_to_one_and_other_architectures_are_refused(variables):
    with pytest.raises(ValueError, match=r"--weights nan 1\.0 must add to 1"):
        average(variables, (float("nan"), 1.0))
    with pytest.raises(ValueError, match=r"--weights 0\.5 0\.4 must add to 1"):
        average(variables, (0.5, 0.4))
    other = jax.tree.map(lambda leaf: leaf[..., None], variables[1])
    with pytest.raises(ValueError, match="model 2 is of another architecture than the first: "):
        average([variables[0], other], (0.5, 0.5))


def test_a_greedy_soup_keeps_what_does_not_make_it_worse():
    # The second makes it worse, the third and the equal fourth do not.
    scores = {(1,): 0.6, (1, 2): 0.55, (1, 0): 0.7, (1, 0, 3): 0.7}
    kept = greedy_soup([0.5, 0.6, 0.55, 0.1], lambda places: scores[tuple(places)])
    assert kept == [1, 0, 3]


def test_what_is_written_is_a_run_that_is_read_again(model, variables, tmp_path):
    write_run(tmp_path / "run", model.config, variables[0], tokenizer=None)
    damaged = tmp_path / "run/checkpoints/0"
    with pytest.raises(ValueError, match="holds a run: name a new directory"):
        write_run(tmp_path / "run", model.config, variables[0], tokenizer=None)
    read, step = read_variables(damaged.parent)
    assert step == 0
    assert_equal(read, variables[0])


@pytest.fixture
def runs(model, variables, tmp_path, tokenizer_of_run):
    paths = []
    for number, each in enumerate(variables):
        paths.append(str(tmp_path / f"model{number}"))
        write_run(paths[-1], model.config, each, tokenizer=tokenizer_of_run)
    return paths


@pytest.fixture(scope="module")
def tokenizer_of_run():
    return ClipTokenizer(context_length=8)


def test_the_command_interpolates_two_runs(runs, variables, tmp_path, capsys):
    out = str(tmp_path / "wise")
    assert main(["average", *runs, "--weights", "0.5", "0.5", "--out", out]) == 0
    loaded = load_to_host(out)
    assert_equal(loaded.variables, average(variables, (0.5, 0.5)))
    assert loaded.tokenizer is not None
    # Before a suite is read, and hours of measuring.
    assert main(["average", *runs, "--greedy", "--suite", "nowhere", "--out", out]) == 2
    assert "holds a run: name a new directory" in capsys.readouterr().err
    assert main(["average", *runs, "--to", "open_clip", "--out", str(tmp_path / "soup")]) == 0
    soup = load_to_host(str(tmp_path / "soup")).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), soup, loaded.variables)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "0.5"], "--weights has 1 numbers for 2 models"),
        (["--steps", "1", "2"], "--steps are of one run, and 2 models are named"),
        (["--greedy", "--weights", "0.5", "0.5"], "--weights has no effect with --greedy"),
        (["--curve", "1"], "--curve is of two models, and has two points or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(runs, tmp_path, capsys, more, message):
    assert main(["average", *runs, "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
