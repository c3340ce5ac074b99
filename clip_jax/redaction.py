"""Keeps passwords and tokens out of logs and files."""

import logging
import re
from typing import TypeVar

T = TypeVar("T")

_SECRETS = (
    # One slash alone is left where a URL was taken for a path.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^/\s@:]*(?::[^/\s@]*)?@", re.IGNORECASE), r"\1***@"),
    (
        re.compile(
            r"([?&;](?:[\w-]*(?:token|secret|password|passwd|signature|credential)[\w-]*"
            r"|sig|key|api_?key|access_?key\w*|auth|awsaccesskeyid|googleaccessid)=)[^&;#\s\"']+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|ya29\.[\w.-]{20,})"), "***"),
)


def redact(value: T) -> T:
    """Text, or JSON that holds text, with passwords and tokens in URLs replaced by ***."""
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact(item) for item in value)
    return value


def masks_logs() -> bool:
    """Whether log messages of this process are masked; processes that it starts are to follow."""
    return getattr(logging.getLogRecordFactory(), "masks_secrets", False)


def redact_logs():
    """From now on no log message of this process shows a secret. For commands, not for libraries."""
    if masks_logs():
        return
    make = logging.getLogRecordFactory()

    def make_masked(*args, **kwargs):
        record = make(*args, **kwargs)
        record.msg, record.args = redact(record.getMessage()), ()
        return record

    make_masked.masks_secrets = True
    logging.setLogRecordFactory(make_masked)
