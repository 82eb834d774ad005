"""What docs/results.md says of the reasons, from the logs of `does_it_pay.py 017 -o OUT`.

    python benchmarks/pays_why.py OUT [MORE ...]

MORE are further folders of nnssl_benchmark, for trainings with one thing changed. Writes to benchmarks/results:

    pays_why.csv              every training on 4 cases: training loss and pseudo Dice by epoch of 40 steps, and the
                              Dice of the 40 test cases after the last one
    pays_why_pretraining.csv  every pretraining: its losses and effective rank in the first and the last epoch
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nnssl.core import names as escape
from nnssl.core.files import replace_file

SCORES = Path(__file__).resolve().parent / "results"
STEPS = 40
TRAINING = ("training", "seed", "step", "training_loss", "anterior", "posterior", "test_anterior", "test_posterior")
PRETRAINING = ("method", "seed", "step", "loss", "val_loss", "val_reconstruction", "effective_rank")


def trainings(folder: Path) -> Iterator[list[str]]:
    """Rows of the finished trainings on 4 cases, whose folds are the seeds."""
    for summary in sorted(folder.glob("nnUNet_results/*/Dataset*/*/fold_[012]/validation/summary.json")):
        fold = summary.parent.parent
        text = max(fold.glob("training_log_*.txt")).read_text()
        losses = re.findall(r"train_loss (\S+)", text)
        dice = [re.findall(r"float32\((\S+?)\)", line) for line in re.findall(r"Pseudo dice (.*)", text)]
        for number, (loss, classes) in enumerate(zip(losses, dice, strict=False), start=1):
            test = tested(fold) if number == len(losses) else ["", ""]
            yield [fold.parts[-4], fold.name[-1], str(number * STEPS), loss, *classes, *test]


def tested(fold: Path) -> list[str]:
    """Dice by class over the test cases."""
    mean = json.loads((fold / "validation" / "summary.json").read_text())["mean"]
    return [f"{mean[label]['Dice']:.4f}" for label in sorted(mean)]


def pretrainings(out: Path) -> Iterator[list[str]]:
    """Rows of the first and the last epoch."""
    for file in sorted(out.glob("pretrained/seed_*/Dataset*/nnssl_*/fold_all/metrics.jsonl")):
        seed, _, run, *_ = file.parts[-5:]
        epochs = [json.loads(line) for line in file.read_text().splitlines()]
        for epoch in (epochs[0], epochs[-1]):
            known = {key: f"{epoch[key]:.4f}" for key in PRETRAINING[3:] if epoch.get(key) is not None}
            name, number = run.split("__")[0].removeprefix("nnssl_"), seed.removeprefix("seed_")
            yield [name, number, str(epoch["step"]), *(known.get(key, "") for key in PRETRAINING[3:])]


def main() -> None:
    """Write both files."""
    out, *more = map(Path, sys.argv[1:])
    rows = [row for folder in (out / "017", *more) for row in trainings(folder)]
    replace_file(SCORES / "pays_why.csv", escape.csv_table(TRAINING, rows).encode())
    replace_file(SCORES / "pays_why_pretraining.csv", escape.csv_table(PRETRAINING, pretrainings(out)).encode())


if __name__ == "__main__":
    main()
