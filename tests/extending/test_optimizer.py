"""An optimizer from outside the tree updates as it does elsewhere, and is refused what it does not use."""

import pytest

from clip_jax.cli.main import main

NAME = ("--optimizer.name", "outside.optimizer:signs", "--optimizer.weight-decay", "0.1")


def test_each_parameter_moves_by_the_learning_rate_and_by_its_decay_which_is_far_less(run):
    assert run.lines[1]["update_norm"] == pytest.approx(run.lines[3]["update_norm"], rel=0.05)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--optimizer.eps", "1e-8"), "optimizer.eps=1e-08 has no effect"),
        (("--optimizer.options", "patiance=3"), "the name is one of patience"),
        (("--optimizer.name", "outside.optimizer:sings"), "the nearest is 'signs'"),
    ],
)
def test_what_it_does_not_use_or_have_is_refused_in_one_line(tmp_path, capsys, more, message):
    assert main(["train", *NAME, *more, "--workdir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
