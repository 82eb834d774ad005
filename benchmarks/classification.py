"""Make docs/classification.md's table: targets that hippocampi determine, and one that they do not.

    python benchmarks/classification.py -o OUT -runs RUNS             everything that is left
    python benchmarks/classification.py -o OUT -runs RUNS -seeds 1 -epochs 5
    python benchmarks/classification.py -o OUT --write_docs           the table, from benchmarks/results

RUNS holds seed_S/Dataset502_*/nnssl_METHOD__*, finished pretrainings of a dataset of the same kind; such a folder is
OUT/pretrained of does_it_pay.py. The dataset is made in nnUNet_raw from Dataset017's images and label maps:

    size        larger or smaller than the median volume of both parts of the hippocampus, in the label map
    view        more or fewer voxels of the image than the median: its field of view
    shuffled    the sizes, given to other cases: no image determines it, and scores must be at chance

The same command goes on where it was interrupted. On two cores:

    export nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 nnUNet_compile=f OMP_NUM_THREADS=1
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl import classify
from nnssl.cli.run import entry
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.data.folders import dataset_name, require_folders

NUMBER, NAME = 617, "Dataset617_Hippocampus"
TARGETS = ("size", "view", "shuffled")
TUNED_TARGETS = ("size", "shuffled")
SCORES = ("accuracy", "auroc", "average_precision", "calibration_error")
FROZEN, TUNED = "frozen", "fine-tuned"
RESULTS = Path(__file__).parent / "results" / "classification.json"
PAGE = Path(__file__).parents[1] / "docs" / "classification.md"
_BEGIN, _END = "<!-- table: benchmarks/classification.py -->\n", "<!-- end of table -->\n"

log = logging.getLogger("nnssl")


def make_dataset() -> None:
    """Link the images, and write the targets."""
    (raw,) = require_folders("nnUNet_raw")
    source, folder = raw / dataset_name(17), raw / NAME
    if (folder / "labels.csv").is_file():
        return
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    names, volumes, views = [], [], []
    for image in sorted((source / "imagesTr").glob("*_0000.nii.gz")):
        names.append(image.name.removesuffix("_0000.nii.gz"))
        link = folder / "imagesTr" / image.name
        if not link.is_symlink():
            link.symlink_to(image.resolve())
        labels = sitk.ReadImage(str(source / "labelsTr" / f"{names[-1]}.nii.gz"))
        array = sitk.GetArrayViewFromImage(labels)
        volumes.append(float((array > 0).sum() * np.prod(labels.GetSpacing())))
        views.append(array.size)
    size, view = (np.where(np.array(v) > np.median(v), "large", "small") for v in (volumes, views))
    shuffled = np.random.default_rng(0).permutation(size)
    content: dict[str, Any] = read_json(source / "dataset.json")
    write_json(folder / "dataset.json", {**content, "labels": {"background": 0}})
    with open(folder / "labels.csv", "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["case", *TARGETS])
        table.writerows(zip(names, size, view, shuffled, strict=True))


@dataclass(frozen=True)
class Job:
    """A classification."""

    seed: int
    method: str
    way: str
    target: str
    random: bool

    @property
    def start(self) -> str:
        """Name of the weights."""
        return f"random ({self.method}'s network)" if self.random else self.method

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
        tuned = self.way == TUNED
        options = [f"num_epochs={epochs}", "learning_rate=3e-4", f"patch_size={patch}", "batch_size=4"]
        more: dict[str, Any] = {"finetune": True, "continue_run": True, "options": options, "fold": folds}
        classify(NUMBER, model, self.target, output=self.folder(out), seed=self.seed, num_processes=1,
                 **(more if tuned else {}))  # fmt: skip


def jobs(methods: Sequence[str], tuned: Sequence[str], seeds: int) -> Iterator[Job]:
    """Frozen ones first, which take minutes; a frozen one scores random weights too."""
    for seed in range(seeds):
        yield from (Job(seed, method, FROZEN, target, False) for method in methods for target in TARGETS)
    for seed in range(seeds):
        for method in tuned:
            for target in TUNED_TARGETS:
                yield from (Job(seed, method, TUNED, target, random) for random in (False, True))


def collect(done: Sequence[Job], out: Path) -> dict[str, Any]:
    """Pooled scores of every seed, by target, way, start and kind of prediction; with seconds and memory."""
    table: dict[str, Any] = {}
    for job in done:
        content = json.loads((job.folder(out) / "results.json").read_text())
        for kind, scores in content["predictions"].items():
            if kind == "class shares" and job.way == TUNED:
                continue
            random = job.random or "random weights" in kind
            start = "" if kind == "class shares" else f"random ({job.method}'s network)" if random else job.method
            key = " | ".join((job.target, kind.removesuffix(", random weights"), start))
            row = table.setdefault(key, {"seeds": [], "cost": []})
            row["seeds"].append({name: scores["pooled"][name]["value"] for name in SCORES})
            row["cost"].append({name: content[name] for name in ("seconds", "memory_gib")})
    return table


def table_lines(table: dict[str, Any]) -> list[str]:
    """Mean and deviation over seeds, in Markdown."""
    lines = ["| target | prediction | weights | seeds | accuracy | AUROC | average precision | calibration error |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key, row in sorted(table.items(), key=lambda item: TARGETS.index(item[0].split(" | ")[0])):
        cells = []
        for name in SCORES:
            values = [seed[name] for seed in row["seeds"]]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        lines.append(f"| {key} | {len(row['seeds'])} | {' | '.join(cells)} |")
    return lines


def write_page(table: dict[str, Any]) -> None:
    """Replace the table of docs/classification.md."""
    text = PAGE.read_text()
    before, rest = text.split(_BEGIN)
    PAGE.write_text(before + _BEGIN + "\n" + "\n".join(table_lines(table)) + "\n\n" + _END + rest.split(_END)[1])


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-o", type=Path, required=True, dest="out", help="folder of all results")
    p.add_argument("-runs", type=Path, help="folder of the pretrainings")
    p.add_argument("-methods", nargs="+", default=["vox2vec"], help="pretrainings whose frozen features are scored")
    p.add_argument("-tuned", nargs="+", default=["vox2vec"], help="pretrainings that are fine-tuned")
    p.add_argument("-ways", nargs="+", choices=(FROZEN, TUNED), default=[FROZEN, TUNED], help="that this call makes")
    p.add_argument("-seeds", type=int, default=3)
    p.add_argument("-epochs", type=int, default=20, help="of a fine-tuning")
    p.add_argument("-folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="that are fine-tuned")
    p.add_argument("-patch", default="none", metavar="Z,Y,X", help="of a fine-tuning; none: whole volumes")
    p.add_argument("--write_docs", action="store_true", help="only write the table of docs/classification.md")
    return p


def _command(given: argparse.Namespace) -> None:
    if given.write_docs:
        write_page(json.loads(RESULTS.read_text()))
        return
    make_dataset()
    wanted = list(jobs(given.methods, given.tuned, given.seeds))
    for number, job in enumerate(wanted, start=1):
        if job.way in given.ways and not (job.folder(given.out) / "results.json").is_file():
            log.info(f"[{number} of {len(wanted)}] {job}")
            job.run(given.out, given.runs, given.epochs, given.folds, given.patch)
        done = [job for job in wanted if (job.folder(given.out) / "results.json").is_file()]
        write_json(RESULTS, collect(done, given.out))
    for line in table_lines(json.loads(RESULTS.read_text())):
        log.info(line)


main = entry(parser, _command)

if __name__ == "__main__":
    main()
