"""How well samples are mixed: globally, in blocks, in whole shards, and in webdataset's buffer.

    python benchmarks/shuffle_quality.py --shards 1000 --samples 10000 --batch 4096

Of each order, over some batches in the middle of an epoch: the largest share of a batch that comes from
one shard; how many times as often as in a global shuffle two samples of a batch are of one shard, and
lie within 200 samples of each other in it; the correlation of the places in the data of rows that
follow each other. webdataset's order is that of open_clip: shards in random order, dealt to eight readers
that each make an eighth of a batch out of a buffer of 5,000.
"""

import argparse
import random
from collections.abc import Iterator

import numpy as np

from clip_jax.data.block_order import BlockOrder, Blocks
from clip_jax.data.shuffle import Mixture

NEAR = 200  # samples: about a block
BUFFER, READERS = 5_000, 8


def in_blocks(shards: int, samples: int, batch: int, block: int, megabytes: float, window: float):
    total = shards * samples
    blocks = Blocks(np.append(np.arange(0, total, block), total), megabytes * 1e6)
    order = BlockOrder([blocks], batch_size=batch, window=window * 1e6, seed=0)
    print(f"  {order}")
    return lambda step: order.rows(step * batch + np.arange(batch)).index


def globally(shards: int, samples: int, batch: int):
    mixture = Mixture([shards * samples])
    return lambda step: mixture.rows(step * batch + np.arange(batch), 0)[1]


def webdataset(shards: int, samples: int, batch: int, first: int, count: int) -> list[np.ndarray]:
    """Batches `first` to `first` + `count`, by the rule of webdataset.filters.shuffle."""
    order = random.Random(0).sample(range(shards), shards)
    readers = [_buffered(order[reader::READERS], samples, reader) for reader in range(READERS)]
    each, found = batch // READERS, []
    for step in range(first + count):
        rows = [next(reader) for reader in readers for _ in range(each)]
        if step >= first:
            found.append(np.array(rows))
    return found


def _buffered(shards: list[int], samples: int, seed: int) -> Iterator[int]:
    rng, buffer = random.Random(seed), []
    for shard in shards:
        for number in range(shard * samples, (shard + 1) * samples):
            buffer.append(number)
            if len(buffer) >= BUFFER:
                place = rng.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()


def quality(batches: list[np.ndarray], samples: int) -> np.ndarray:
    """Largest share of one shard, pairs of one shard, pairs that lie near, correlation of neighbours."""
    found = []
    for index_B in batches:
        counts = np.unique(index_B // samples, return_counts=True)[1]
        sorted_B = np.sort(index_B)
        near = (
            np.searchsorted(sorted_B, sorted_B + NEAR, side="right") - np.arange(len(index_B)) - 1
        )
        pairs = len(index_B) * (len(index_B) - 1) / 2
        correlation = np.corrcoef(index_B[:-1], index_B[1:])[0, 1]
        same = (counts * (counts - 1) / 2).sum() / pairs
        found.append((counts.max() / len(index_B), same, near.sum() / pairs, correlation))
    return np.mean(found, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000, help="in a shard")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--first", type=int, default=100, help="the first batch that is looked at")
    args = parser.parse_args()
    sizes = args.shards, args.samples, args.batch
    steps = range(args.first, args.first + args.batches)
    orders = {
        "global": globally(*sizes),
        "blocks of 200 (10 MB), 2 GB": in_blocks(*sizes, 200, 10, 2048),
        "blocks of 200 (10 MB), 8 GB": in_blocks(*sizes, 200, 10, 8192),
        "64 whole shards (500 MB)": in_blocks(*sizes, args.samples, 500, 32_000),
    }
    found = {name: quality([order(step) for step in steps], args.samples) for name, order in orders.items()}  # fmt: skip
    found["webdataset, 8 x 5,000"] = quality(
        webdataset(*sizes, args.first, args.batches), args.samples
    )
    _, same, near, _ = found["global"]
    print(f"{'order':30} {'largest shard':>14} {'same shard':>11} {'near':>8} {'correlation':>12}")
    for name, values in found.items():
        print(
            f"{name:30} {values[0]:14.2%} {values[1] / same:10.1f}x {values[2] / near:7.1f}x {values[3]:12.3f}"
        )


if __name__ == "__main__":
    main()
