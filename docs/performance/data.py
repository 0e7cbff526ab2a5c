"""The loader beside torchvision's transforms in a DataLoader: the same augmentations on the same cores, in turns.

usage: python data.py RETORT [--rounds N] [--seconds S] [--json FILE]

RETORT is the release build of the program (target/release/retort). Needs torch and torchvision.
Prints a Markdown table of medians over the rounds; every figure is images per second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

THREADS = 2
BATCH = 64
ROWS = 10_000
CROP = '{"kind": "random-crop", "padding": 4}, {"kind": "horizontal-flip", "probability": 0.5}'
ROWS_OF_TABLE = [
    ("crop, flip", f"[{CROP}]", "crop"),
    ("crop, flip, TrivialAugment", f'[{CROP}, {{"kind": "trivial-augment"}}]', "trivial"),
    ("crop, flip, RandAugment", f'[{CROP}, {{"kind": "rand-augment"}}]', "rand"),
    ("crop, flip, AutoAugment", f'[{CROP}, {{"kind": "auto-augment"}}]', "auto"),
    (
        "resized crop, flip, jitter, grey (SimSiam)",
        '[{"kind": "random-resized-crop", "scale": [0.2, 1.0]}, {"kind": "horizontal-flip", "probability": 0.5}, '
        '{"kind": "colour-jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}, '
        '{"kind": "greyscale", "probability": 0.2}]',
        "simsiam",
    ),
]


def ours(program, transforms, seconds):
    steps = 200
    while True:
        command = [program, "bench", "loader", "--batch", str(BATCH), "--threads", str(THREADS), "--rows", str(ROWS)]
        command += ["--transforms", transforms, "--steps", str(steps), "--json"]
        env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS), CANDLE_NUM_THREADS="1")
        start = time.perf_counter()
        found = json.loads(subprocess.run(command, check=True, capture_output=True, env=env).stdout)
        if time.perf_counter() - start >= seconds:
            return found["images_per_second"]
        steps *= 2


def theirs(kind, workers, seconds):
    program = [sys.executable, __file__, "--torch", kind, "--workers", str(workers), "--seconds", str(seconds)]
    return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def torch_side(kind, workers, seconds):
    import numpy
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms as t

    torch.set_num_threads(1 if workers else THREADS)
    crop = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()]
    steps = {
        "crop": crop,
        "trivial": crop + [t.TrivialAugmentWide()],
        "rand": crop + [t.RandAugment()],
        "auto": crop + [t.AutoAugment(t.AutoAugmentPolicy.CIFAR10)],
        "simsiam": [
            t.RandomResizedCrop(32, scale=(0.2, 1.0)),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            t.RandomGrayscale(p=0.2),
        ],
    }[kind]
    transform = t.Compose(steps + [t.ToTensor(), t.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))])

    class Random(Dataset):
        """As torchvision's CIFAR10: an array, and a PIL image on the way out."""

        def __init__(self):
            self.data = numpy.random.default_rng(0).integers(0, 256, (ROWS, 32, 32, 3), dtype=numpy.uint8)

        def __len__(self):
            return ROWS

        def __getitem__(self, index):
            return transform(Image.fromarray(self.data[index])), index % 100

    loader = DataLoader(
        Random(), BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    for _ in loader:  # workers are started, caches are warm
        pass
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for batch, _ in loader:
            images += len(batch)
    print(images / (time.perf_counter() - start))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json")
    parser.add_argument("--torch")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    if args.torch:
        return torch_side(args.torch, args.workers, args.seconds)
    sides = {name: {"retort": [], "0 workers": [], "2 workers": []} for name, _, _ in ROWS_OF_TABLE}
    for _ in range(args.rounds):
        for name, transforms, kind in ROWS_OF_TABLE:
            sides[name]["retort"].append(ours(args.program, transforms, args.seconds))
            for workers in (0, THREADS):
                sides[name][f"{workers} workers"].append(theirs(kind, workers, args.seconds))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(sides, file, indent=1)
    print("| augmentation | retort | DataLoader, no workers | DataLoader, 2 workers | ratio to the better |")
    print("|---|---|---|---|---|")
    for name, side in sides.items():
        mine, *others = (statistics.median(side[key]) for key in ("retort", "0 workers", "2 workers"))
        ratio = mine / max(others)
        print(f"| {name} | {mine:,.0f} | {others[0]:,.0f} | {others[1]:,.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
