"""64-bit hashes of many pieces of one block of bytes at once: eight bytes of all of them at a time."""

from collections.abc import Sequence

import numpy as np

# Odd constants without a pattern: the mixer of SplitMix64 (Steele, Lea, Flood; OOPSLA 2014).
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
STEP = np.uint64(0x9E3779B97F4A7C15)
WORD = 8  # bytes
IS_SPACE = np.zeros(256, bool)
IS_SPACE[[*b" \t\n\r\v\f"]] = True


def hash_pieces(data: bytes, start_N: np.ndarray, end_N: np.ndarray) -> np.ndarray:
    """A hash of each of `data[start:end]`, uint64 and never 0; equal pieces have equal hashes."""
    length_N = (end_N - start_N).astype(np.uint64)
    hash_N = _mix(length_N + STEP)
    # A word may begin at any byte; those that reach beyond the end read zeros.
    padded = data + bytes(WORD)
    word_P = np.ndarray(len(data) + 1, "<u8", buffer=padded, strides=(1,))
    todo_R = np.flatnonzero(start_N < end_N)
    at_R, end_R = start_N[todo_R].astype(np.int64), end_N[todo_R].astype(np.int64)
    while len(todo_R):
        left_R = np.minimum(end_R - at_R, WORD).astype(np.uint64)
        word_R = word_P[at_R] & (~np.uint64(0) >> (np.uint64(8) * (np.uint64(WORD) - left_R)))
        hash_N[todo_R] = _mix((hash_N[todo_R] ^ word_R) + STEP)
        at_R = at_R + WORD
        goes_on_R = at_R < end_R
        todo_R, at_R, end_R = todo_R[goes_on_R], at_R[goes_on_R], end_R[goes_on_R]
    return _not_zero(hash_N)


def hash_texts(texts: Sequence[bytes]) -> np.ndarray:
    """The same of texts that lie apart."""
    end_N = np.cumsum([len(text) for text in texts], dtype=np.int64)
    start_N = np.concatenate([[0], end_N])[:-1].astype(np.int64)
    return hash_pieces(b"".join(texts), start_N, end_N)


def with_second(hash_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """Hashes of pairs of pieces out of both hashes."""
    return _not_zero(_mix(hash_N + _mix(second_N + STEP)))


def strip(
    byte_N: np.ndarray, start_R: np.ndarray, end_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First bytes of pieces, and the ones after them, without the white space around."""
    start_R, end_R = start_R.copy(), end_R.copy()
    for side_R, step, offset in ((start_R, 1, 0), (end_R, -1, -1)):
        todo_R = np.flatnonzero(start_R < end_R)
        while len(todo_R := todo_R[IS_SPACE[byte_N[side_R[todo_R] + offset]]]):
            side_R[todo_R] += step
            todo_R = todo_R[start_R[todo_R] < end_R[todo_R]]
    return start_R, end_R


def after_dots(byte_N: np.ndarray, start_R: np.ndarray, end_R: np.ndarray) -> np.ndarray:
    """First bytes of paths without the ./ before them."""
    while True:
        at_R = np.minimum(start_R, len(byte_N) - 2)
        dots_R = (byte_N[at_R] == ord(".")) & (byte_N[at_R + 1] == ord("/")) & (end_R - start_R > 1)
        dots_R &= byte_N[np.minimum(at_R + 2, len(byte_N) - 1)] != ord("/")
        if not dots_R.any():
            return start_R
        start_R = start_R + 2 * dots_R


def _mix(value_N: np.ndarray) -> np.ndarray:
    value_N = (value_N ^ (value_N >> np.uint64(30))) * MULTIPLIERS[0]
    value_N = (value_N ^ (value_N >> np.uint64(27))) * MULTIPLIERS[1]
    return value_N ^ (value_N >> np.uint64(31))


def _not_zero(hash_N: np.ndarray) -> np.ndarray:
    return np.where(hash_N == 0, np.uint64(1), hash_N)
