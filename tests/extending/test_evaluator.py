"""What an evaluator from outside the tree does not measure, and what is none, is refused."""

import pytest

from clip_jax.cli.main import main

NAME = "outside.evaluator:GAP"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--evaluation.metrics", "outside.evaluator:GAPS"), "the nearest is 'GAP'"),
        (("--evaluation.metrics", "outside.evaluator:measure"), "must be an Evaluator"),
        (("--checkpoint.keep-best-by", "eval/modality_gap"), "is no metric of evaluation.metrics"),
        (
            ("--evaluation.metrics", NAME, "--checkpoint.keep-best-by", "eval/gap"),
            "is no metric of evaluation.metrics",
        ),
    ],
)
def test_it_is_refused_in_one_line(settings, message, tmp_path, capsys):
    assert main(["train", "--workdir", str(tmp_path / "run"), *settings]) == 2
    assert message in capsys.readouterr().err
