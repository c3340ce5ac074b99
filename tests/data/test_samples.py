"""What sources raise and give survives the way between processes."""

import pickle

from clip_jax.data.samples import BadSample, Sample


def test_a_bad_sample_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(BadSample("empty-file", key="0.tar/7", shard="0.tar")))
    assert (error.reason, error.key, error.shard) == ("empty-file", "0.tar/7", "0.tar")
    assert str(error) == "0.tar/7: empty-file"


def test_a_sample_prints_without_its_bytes():
    sample = Sample(image=b"secret", captions=("a",), key="k", shard="s")
    assert "secret" not in repr(sample)


def test_a_key_without_end_is_cut_and_stays_unique():
    keys = [f"{'x' * 9_000}{end}" for end in "ab"]
    samples = [Sample(image=b"", captions=("a",), key=key, shard="s") for key in keys]
    bad = [BadSample("gone", key=key, shard=keys[0]) for key in keys]
    for one, other in (samples, bad):
        assert one.key != other.key and len(one.key) <= 1_000 >= len(one.shard)
    assert [one.key for one in samples] == [one.key for one in bad]
