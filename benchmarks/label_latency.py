"""How long others wait for the label server while it segments and trains.

liverseg serve &
python benchmarks/label_latency.py --model deeplabv3_liver

Asks a running server for what clients ask for again and again, as another annotator does: alone,
while two inferences run at any time, and while a training runs. A training needs two scans with
final labels; without them it is left out.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import requests

ADDRESSES = ("info/", "datastore/?output=train", "train/")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="that segments and trains")
    parser.add_argument("--requests", type=int, default=200, help="of each kind in each situation")
    arguments = parser.parse_args()

    print("| the server | request | median, ms | p95, ms | longest, ms |")
    print("|---|---|---|---|---|")
    measure("idle", arguments.url, arguments.requests)
    with segmenting(arguments.url, arguments.model):
        measure("segments twice", arguments.url, arguments.requests)
    with training(arguments.url, arguments.model) as trains:
        if trains:
            measure("trains", arguments.url, arguments.requests)


def measure(situation: str, url: str, number: int) -> None:
    """Print a row for each address: median, 95th percentile and longest of its answers."""
    for address in ADDRESSES:
        seconds = []
        for _ in range(number):
            start = time.perf_counter()
            answer = requests.get(f"{url}/{address}", timeout=60)
            seconds.append(time.perf_counter() - start)
            # Where nothing trains, this says so with 404.
            assert answer.status_code == 200 or address == "train/", answer.text
            time.sleep(0.05)
        cells = [
            f"{1000 * value:.0f}" for value in (*np.percentile(seconds, [50, 95]), max(seconds))
        ]
        print(f"| {situation} | `/{address}` | " + " | ".join(cells) + " |", flush=True)


@contextmanager
def segmenting(url: str, model: str) -> Iterator[None]:
    """Two inferences at any time, until the block ends."""
    image = sorted(requests.get(f"{url}/datastore/?output=all", timeout=60).json()["objects"])[0]
    stop = threading.Event()

    def segment() -> None:
        while not stop.is_set():
            requests.post(
                f"{url}/infer/{model}", params={"image": image}, timeout=600
            ).raise_for_status()

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(segment) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
        for one in running:
            one.result()


@contextmanager
def training(url: str, model: str) -> Iterator[bool]:
    """A training that ends with the block; False where none can begin."""
    answer = requests.post(f"{url}/train/{model}", json={"max_epochs": 10000}, timeout=60)
    if answer.status_code != 200:
        print(answer.json()["detail"])
        yield False
        return
    try:
        wait_until(
            lambda: (
                requests.get(f"{url}/info/", timeout=60)
                .json()["train_stats"]
                .get(model, {})
                .get("epoch")
            )
        )
        yield True
    finally:
        requests.delete(f"{url}/train/", timeout=60)


def wait_until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.5)


if __name__ == "__main__":
    main()
