"""An optimizer from outside the tree trains over micro-batches on a mesh, and resumes."""

import pytest

from clip_jax.cli.main import main

NAME = ("--optimizer.name", "outside.optimizer:signs", "--optimizer.weight-decay", "0.1")


def test_an_optimizer_from_outside_trains_and_resumes(train, lose_since, tmp_path):
    settings = (*NAME, "--optimizer.learning-rate", "1e-3", "--optimizer.options", "patience=3")
    whole = train(tmp_path, 4, *settings)
    lose_since(tmp_path, 2)
    resumed = train(tmp_path, 4, *settings)
    assert [resumed[step]["loss"] for step in range(1, 5)] == [
        whole[step]["loss"] for step in range(1, 5)
    ]
    # Each parameter moves by the learning rate, and by its decay, which is far less.
    assert whole[1]["update_norm"] == pytest.approx(whole[3]["update_norm"], rel=0.05)


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
