"""Make docs/results_classification.md's tables: targets that hippocampi determine, and one that they do not.

    python benchmarks/classification.py -o OUT -runs RUNS             everything that is left
    python benchmarks/classification.py -o OUT -runs RUNS -methods vox2vec -tuned -seeds 1
    python benchmarks/classification.py -o OUT --collect              benchmarks/results and the page, of what is there

RUNS holds seed_S/Dataset502_*/nnssl_METHOD__*, finished pretrainings of a dataset of the same kind; such a folder is
OUT/pretrained of does_it_pay.py. The dataset is made in nnUNet_raw from Dataset017's images and label maps; half of its
images, chosen at random, are copies that are mirrored from left to right:

    size        larger or smaller than the median volume of both parts of the hippocampus, in the label map
    view        more or fewer voxels of the image than the median: its field of view
    side        whether the image is a mirrored copy: left against right
    shuffled    the sizes, given to other cases: no image determines it, and scores must be at chance

The same command goes on where it was interrupted. On two cores:

    export nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 nnUNet_compile=f OMP_NUM_THREADS=1
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl import classify
from nnssl.classification.frozen import WITH_RANDOM
from nnssl.classification.scores import Floats, mean_score, score
from nnssl.cli.run import entry
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.data.folders import dataset_name, require_folders
from nnssl.methods.registry import get_method

NUMBER, NAME = 618, "Dataset618_HippocampusHalfMirrored"
TARGETS = ("size", "view", "side", "shuffled")
METHODS = ("vox2vec", "voco", "mae", "pimpic", "alice", "unet_mae", "lapn")
MOST_SEEDS = 3
SCORES = ("accuracy", "auroc", "average_precision", "calibration_error")
FROZEN, TUNED = "frozen", "fine-tuned"
RESULTS = Path(__file__).parent / "results" / "classification.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results_classification.md"
_BEGIN, _END = "<!-- tables: benchmarks/classification.py -->\n", "<!-- end of tables -->\n"

log = logging.getLogger("nnssl")


def make_dataset() -> None:
    """Link the images or write them mirrored, and write the targets."""
    (raw,) = require_folders("nnUNet_raw")
    source, folder = raw / dataset_name(17), raw / NAME
    if (folder / "labels.csv").is_file():
        return
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    images = sorted((source / "imagesTr").glob("*_0000.nii.gz"))
    rng = np.random.default_rng(0)
    sides = rng.permutation(np.where(np.arange(len(images)) < len(images) // 2, "mirrored", "original"))
    names, volumes, views = [], [], []
    for image, side in zip(images, sides, strict=True):
        names.append(image.name.removesuffix("_0000.nii.gz"))
        _place(image, folder / "imagesTr" / image.name, side == "mirrored")
        labels = sitk.ReadImage(str(source / "labelsTr" / f"{names[-1]}.nii.gz"))
        array = sitk.GetArrayViewFromImage(labels)
        volumes.append(float((array > 0).sum() * np.prod(labels.GetSpacing())))
        views.append(array.size)
    size, view = (np.where(np.array(v) > np.median(v), "large", "small") for v in (volumes, views))
    content: dict[str, Any] = read_json(source / "dataset.json")
    write_json(folder / "dataset.json", {**content, "labels": {"background": 0}})
    with open(folder / "labels.csv", "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["case", *TARGETS])
        table.writerows(zip(names, size, view, sides, rng.permutation(size), strict=True))


def _place(image: Path, file: Path, mirrored: bool) -> None:
    """A link, or a copy whose voxels along the file's first axis, from right to left, are in reverse order."""
    file.unlink(missing_ok=True)
    if not mirrored:
        file.symlink_to(image.resolve())
        return
    found = sitk.ReadImage(str(image))
    flipped = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(found)[..., ::-1])
    flipped.CopyInformation(found)
    sitk.WriteImage(flipped, str(file))


@dataclass(frozen=True)
class Job:
    """A classification."""

    seed: int
    method: str
    way: str
    target: str
    random: bool = False

    def folder(self, out: Path) -> Path:
        """Where its results are."""
        start = f"random_{self.method}" if self.random else self.method
        return out / f"{self.target}_{start}_{self.way}_seed{self.seed}"

    def run(self, out: Path, runs: Path, epochs: int, folds: Sequence[int], patch: str) -> None:
        """Make what is left; raises UserError where its pretraining is missing."""
        found = sorted(runs.glob(f"seed_{self.seed}/Dataset502_*/nnssl_{self.method}__*"))
        if len(found) != 1:
            raise UserError(f"{runs / f'seed_{self.seed}'} holds {len(found)} pretrainings by {self.method}; make it "
                            f"with benchmarks/does_it_pay.py")  # fmt: skip
        model = f"random:{found[0]}" if self.random else str(found[0])
        options = [f"num_epochs={epochs}", "learning_rate=3e-4", f"patch_size={patch}", "batch_size=4"]
        more: dict[str, Any] = {"finetune": True, "continue_run": True, "options": options, "fold": folds,
                                "num_processes": 1}  # fmt: skip
        classify(NUMBER, model, self.target, output=self.folder(out), seed=self.seed,
                 **(more if self.way == TUNED else {}))  # fmt: skip


def jobs(methods: Sequence[str], tuned: Sequence[str], targets: Sequence[str], seeds: int) -> Iterator[Job]:
    """Frozen ones first, which score random weights too; the encoder from random weights is the same for all."""
    for seed in range(seeds):
        yield from (Job(seed, method, FROZEN, target) for method in methods for target in TARGETS)
    for target in targets:
        for seed in range(seeds):
            yield from (Job(seed, tuned[0], TUNED, target, random=True) for _ in tuned[:1])
            yield from (Job(seed, method, TUNED, target) for method in tuned)


@dataclass
class Found:
    """Predictions of the same cases in every seed.

    Args:
        truth: (N,) classes of the test cases.
        predicted: (N, 2) probabilities by seed.
        memory: GiB of the calls that made them.
    """

    truth: Floats
    predicted: dict[int, Floats]
    memory: list[float]


Row = tuple[str, str, str]  # target, prediction, weights


def collect(out: Path) -> dict[Row, Found]:
    """All that is finished; the random networks of methods that use the same levels are one."""
    table: dict[Row, Found] = {}
    tuned = [Job(seed, method, TUNED, target, random) for target in TARGETS for method in METHODS
             for random in (False, True) for seed in range(MOST_SEEDS)]  # fmt: skip
    for job in [*jobs(METHODS, (), (), MOST_SEEDS), *tuned]:
        if not (job.folder(out) / "results.json").is_file():
            continue
        content = json.loads((job.folder(out) / "results.json").read_text())
        with open(job.folder(out) / "predictions.csv", newline="") as opened:
            cases = list(csv.DictReader(opened))
        for kind in content["predictions"]:
            if kind == "class shares":
                continue
            random = job.random or kind.endswith(WITH_RANDOM)
            levels = "encoder" if job.way == TUNED else get_method(job.method).levels
            row = (job.target, kind.removesuffix(WITH_RANDOM), f"random, {levels}" if random else job.method)
            truth = np.array([float(content["classes"].index(case[job.target])) for case in cases])
            found = table.setdefault(row, Found(truth, {}, []))
            values = [[float(case[f"{kind}: {name}"]) for name in content["classes"]] for case in cases]
            if job.seed not in found.predicted and np.array_equal(truth, found.truth):
                found.predicted[job.seed] = np.array(values)
                found.memory.append(content["memory_gib"])
    return table


def baseline_of(row: Row, table: Mapping[Row, Found]) -> Found | None:
    """The same network with random weights, if it is there."""
    levels = "encoder" if row[1] == TUNED or row[2].startswith("random") else get_method(row[2]).levels
    return None if row[2].startswith("random") else table.get((*row[:2], f"random, {levels}"))


def write_table(table: Mapping[Row, Found]) -> None:
    """`results/classification.csv`: means over seeds, their spread, intervals over cases, differences to random."""
    with open(RESULTS, "w", newline="") as opened:
        file = csv.writer(opened)
        file.writerow(["target", "prediction", "weights", "seeds", "cases", "score", "mean", "sd_over_seeds", "low",
                       "high", "less_random", "less_random_low", "less_random_high", "memory_gib"])  # fmt: skip
        for row, found in sorted(table.items(), key=lambda item: (TARGETS.index(item[0][0]), item[0][1:])):
            groups = [str(number) for number in range(len(found.truth))]
            rows = list(found.predicted.values())
            scores, other = mean_score(rows, found.truth, groups), baseline_of(row, table)
            paired = other is not None and other.predicted.keys() >= found.predicted.keys()
            less = {} if other is None or not paired else mean_score(
                rows, found.truth, groups, [other.predicted[seed] for seed in found.predicted])  # fmt: skip
            for name in SCORES:
                each = [score(predicted, found.truth, groups)[name].value for predicted in rows]
                numbers = [scores[name].value, stdev(each) if len(each) > 1 else None, scores[name].low,
                           scores[name].high]  # fmt: skip
                numbers += [less[name].value, less[name].low, less[name].high] if less else [None] * 3
                file.writerow([*row, len(rows), len(found.truth), name,
                               *("" if value is None else f"{value:.4f}" for value in numbers),
                               f"{max(found.memory):.2f}"])  # fmt: skip


def page_lines() -> list[str]:
    """The tables of the page from the CSV: AUROC of each start and target, for each kind of prediction."""
    with open(RESULTS, newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["score"] == "auroc"]
    lines: list[str] = []
    for kind in dict.fromkeys(row["prediction"] for row in rows):
        chosen = {(row["weights"], row["target"]): row for row in rows if row["prediction"] == kind}
        targets = [target for target in TARGETS if any(key[1] == target for key in chosen)]
        lines += [f"**{kind[0].upper()}{kind[1:]}**", "", "| weights | " + " | ".join(targets) + " |",
                  "|---|" + "---|" * len(targets)]  # fmt: skip
        starts = sorted({key[0] for key in chosen}, key=lambda start: (start.startswith("random"), start))
        lines += [f"| {start} | " + " | ".join(_cell(chosen.get((start, t)), chosen) for t in targets) + " |"
                  for start in starts]  # fmt: skip
        lines.append("")
    return lines


def _cell(row: dict[str, str] | None, others: Mapping[tuple[str, str], dict[str, str]]) -> str:
    """Mean ± SD over seeds (interval over cases); bold where the interval of the random network lies below."""
    if row is None:
        return "not run"
    spread = f" ± {float(row['sd_over_seeds']):.2f}" if row["sd_over_seeds"] else ""
    said = f"{float(row['mean']):.2f}{spread} ({float(row['low']):.2f} to {float(row['high']):.2f})"
    if row["seeds"] != str(MOST_SEEDS):
        said += f", {row['seeds']} seed{'s' * (row['seeds'] != '1')}"
    if row["less_random"]:
        said += f"; {float(row['less_random']):+.2f} ({float(row['less_random_low']):+.2f} to " \
                f"{float(row['less_random_high']):+.2f})"  # fmt: skip
    return f"**{said}**" if is_ahead(row, others) else said


def is_ahead(row: dict[str, str], others: Mapping[tuple[str, str], dict[str, str]]) -> bool:
    """Whether a start is ahead of its random network: in 3 seeds, with intervals that do not overlap."""
    if row["weights"].startswith("random") or int(row["seeds"]) < MOST_SEEDS:
        return False
    levels = "encoder" if row["prediction"] == TUNED else get_method(row["weights"]).levels
    random = others.get((f"random, {levels}", row["target"]))
    return random is not None and int(random["seeds"]) >= MOST_SEEDS and float(row["low"]) > float(random["high"])


def write_page() -> None:
    """Replace the tables of the page."""
    text = PAGE.read_text()
    before, rest = text.split(_BEGIN)
    PAGE.write_text(before + _BEGIN + "\n" + "\n".join(page_lines()) + "\n" + _END + rest.split(_END)[1])


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-o", type=Path, required=True, dest="out", help="folder of all results")
    p.add_argument("-runs", type=Path, help="folder of the pretrainings")
    p.add_argument("-methods", nargs="*", default=METHODS, help="pretrainings whose frozen features are scored")
    p.add_argument("-tuned", nargs="*", default=["vox2vec", "voco"], help="pretrainings that are fine-tuned")
    p.add_argument("-targets", nargs="+", choices=TARGETS, default=["side", "size"], help="of the fine-tunings")
    p.add_argument("-seeds", type=int, default=MOST_SEEDS)
    p.add_argument("-epochs", type=int, default=8, help="of a fine-tuning")
    p.add_argument("-folds", type=int, nargs="+", default=[0, 1], help="that are fine-tuned")
    p.add_argument("-patch", default="16,32,32", metavar="Z,Y,X", help="of a fine-tuning; none: whole volumes")
    p.add_argument("--collect", action="store_true", help="only write the tables of what is finished")
    return p


def _command(given: argparse.Namespace) -> None:
    wanted = [] if given.collect else list(jobs(given.methods, given.tuned, given.targets, given.seeds))
    if wanted:
        make_dataset()
    for number, job in enumerate(wanted, start=1):
        if not (job.folder(given.out) / "results.json").is_file():
            log.info(f"[{number} of {len(wanted)}] {job}")
            job.run(given.out, given.runs, given.epochs, given.folds, given.patch)
    write_table(collect(given.out))
    for line in page_lines():
        log.info(line)
    if given.collect:
        write_page()


main = entry(parser, _command)

if __name__ == "__main__":
    main()
