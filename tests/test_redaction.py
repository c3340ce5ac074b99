"""Secrets stay out of what is written."""

import logging

import pytest

from clip_jax.redaction import masks_logs, redact, redact_logs


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:word@host/x", "https://***@host/x"),
        (
            "see gs://bucket/a?X-Goog-Signature=ab12&b=1 now",
            "see gs://bucket/a?X-Goog-Signature=***&b=1 now",
        ),
        ("https://h/?access_token=ab.c-d", "https://h/?access_token=***"),
        ("https://h/?a=1&sig=ab%2F;key=z", "https://h/?a=1&sig=***;key=***"),
        (
            "https://h/?X-Amz-Security-Token=q&AWSAccessKeyId=w",
            "https://h/?X-Amz-Security-Token=***&AWSAccessKeyId=***",
        ),
        ("hf_abcdefghijklmnopqrstuv", "***"),
        ("pairs:/data/token=5/captions.csv", "pairs:/data/token=5/captions.csv"),
        ("a photo of me@home.org, 50:50", "a photo of me@home.org, 50:50"),
        ("https://h/?keyboard=1", "https://h/?keyboard=1"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_left_alone(text, masked):
    assert redact(text) == masked
    assert redact({"a": [text, (text,)], "n": 1}) == {"a": [masked, (masked,)], "n": 1}


def test_log_messages_show_no_secret(caplog):
    before = logging.getLogRecordFactory()
    try:
        redact_logs()
        redact_logs()
        logging.getLogger("anything").warning("reading %s", "https://me:word@host")
    finally:
        logging.setLogRecordFactory(before)
    assert "reading https://***@host" in caplog.text and "word" not in caplog.text


def test_a_process_tells_whether_its_logs_are_masked(caplog):
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    try:
        assert not masks_logs()
        redact_logs()
        assert masks_logs()
        logging.getLogger("anything").warning("reading %s", "https://h/x?sig=word")
    finally:
        logging.setLogRecordFactory(before)
    assert "https://h/x?sig=***" in caplog.text


def test_masking_twice_is_masking_once():
    once = redact("https://me:word@host/x?token=ab")
    assert "word" not in once and redact(once) == once
