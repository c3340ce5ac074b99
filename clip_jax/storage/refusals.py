"""Which failures of a storage pass, and which are an answer that stays the same."""

FINAL = (IsADirectoryError, NotADirectoryError, PermissionError)  # waiting does not help
PASSING = (408, 425, 429)  # of HTTP's answers of 400 to 499, those that do pass
FINAL_NAMES = {  # aiohttp's, which is imported where it is needed
    "TooManyRedirects": "its server redirects in a circle, or too often",
    "InvalidURL": "it is no URL, or its server redirects to what is none",
    "NonHttpUrlClientError": "its server redirects to what is neither http nor https",
    "ClientConnectorCertificateError": "the certificate of its server is not valid",
}


class NoRanges(ValueError):
    """A server that does not send parts of files, each of which would be the beginning, or no lengths."""

    def __init__(self, path: str, answer: str = ""):
        answered = answer and f"; it answers {answer}"
        super().__init__(
            f"{path}: the server does not send ranges of bytes, or not the length of the file{answered}. Random "
            "access needs both (python -m http.server is such a one): copy the files to a disk or a bucket, or use another server"
        )


def is_expired(error: Exception) -> bool:
    """Whether it says that credentials are too old, which those that the next client finds may not be."""
    return _status(error) == 401 or "expired" in str(error).lower()


def is_refusal(error: Exception) -> bool:
    """Whether it carries an answer of HTTP that says that the request is at fault."""
    answer = _status(error)
    if isinstance(error, FINAL) or _final_name(error):
        return True
    return isinstance(answer, int) and 400 <= answer < 500 and answer not in PASSING


def said(error: Exception) -> str:
    """What went wrong, in words."""
    if name := _final_name(error):
        return FINAL_NAMES[name]
    if isinstance(error, TimeoutError) and not str(error):
        return "the server does not answer in time"
    return f"{type(error).__name__}: {error}"


def _final_name(error: Exception) -> str | None:
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((name for name in names if name in FINAL_NAMES), None)


def _status(error: Exception) -> object:
    names = ("status", "status_code", "code")  # of aiohttp, of Azure's client, of gcsfs
    return next((getattr(error, name) for name in names if hasattr(error, name)), None)
