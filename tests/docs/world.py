"""A folder in which the commands of the pages find what they name, and one process that runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.deployment.models import write_model
from tests.docs.parsers import OWN
from tests.phantoms import ct_volume, write_ct_dataset, write_dataset_json
from tests.pretrainings import tiny_plans
from tests.runs import SMALL

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SHORT = ["num_epochs=1", "steps_per_epoch=1", "val_steps_per_epoch=1", "patch_size=16,32,32"]


class World:
    """nnU-Net's folders, images in the working directory, and what names such as `RUN` stand for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names, self._outputs = folder, dict[str, Path](), count()
        for name in FOLDERS:
            (folder / name).mkdir()
        self._write_images(
            "imagesTr", "labelsTr", ["case_1", "case_2", *(f"hippocampus_{i:03d}" for i in (3, 8, 19, 23))]
        )
        self._write_images("imagesTs", "labelsTs", ["case_3"])
        for predictions in ("predicted", "predictions"):
            self._write_images("imagesTs", predictions, ["case_3"])
            write_dataset_json(folder / predictions, ["CT"], ["liver", "spine"], 1, ".nii.gz")
            (folder / predictions / "plans.json").write_text(json.dumps(tiny_plans()))
        write_dataset_json(folder, ["CT"], ["liver", "spine"], 6, ".nii.gz")
        write_ct_dataset(folder / "nnUNet_raw", 500, "Thorax", 3)
        write_ct_dataset(folder / "nnUNet_raw", 17, "Organs", 3, labelled=True)
        scans = write_ct_dataset(folder / "nnUNet_raw", 600, "Scans", 12)
        rows = [f"case_{i:03d},{'yes' if i % 2 else 'no'}" for i in range(12)]
        (scans / "labels.csv").write_text("\n".join(["case,covid", *rows]))

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Work in the folder, with its variables."""
        for name in FOLDERS:
            monkeypatch.setenv(name, str(self.folder / name))
        for name, value in (("nnUNet_def_n_proc", "1"), ("nnUNet_n_proc_DA", "0"), ("nnUNet_compile", "f"),
                            ("IMAGES", str(self.folder / "imagesTr"))):  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(self.folder)
        Path("covid.csv").unlink(missing_ok=True)  # of another page
        shutil.rmtree("maps", ignore_errors=True)

    def run(self, words: Sequence[str]) -> None:
        """Run a command as it stands, a pretraining with a short schedule; every `OUT` is another folder."""
        self.names["OUT"] = self.folder / f"out_{next(self._outputs)}"
        command, *arguments = (os.path.expandvars(self._named(word)) for word in words)
        if command == "nnssl_pretrain":
            small = SMALL.get(arguments[arguments.index("-m") + 1], {})
            options = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in small.items()]
            arguments += ["-p", "nnsslPlans_tiny", "-device", "cpu", "-np", "1", "--overwrite", "-o", *SHORT, *options]
        try:
            import_module(OWN[command]).main(arguments)
        except SystemExit as end:
            pytest.fail(f"{' '.join(words)} ended with {end.code}")

    def pretrained(self, method: str) -> Path:
        """A short run of a method on dataset 500."""
        run = self.folder / "nnUNet_results/Dataset500_Thorax" / f"nnssl_{method}__nnsslPlans_tiny__3d_fullres"
        if not run.is_dir():
            self.run(["nnssl_pretrain", "-d", "500", "-m", method])
        return run

    def classifier(self) -> Path:
        """The folder of a classifier of dataset 600."""
        if not (found := list(self.folder.glob("nnUNet_results/Dataset600_Scans/**/model.pth"))):
            self.run(["nnssl_classify", "-d", "600", "-m", "RUN", "-target", "covid"])
            found = list(self.folder.glob("nnUNet_results/Dataset600_Scans/**/model.pth"))
        return found[0].parent

    def segmenter(self) -> Path:
        """A model folder of a small network that was never trained."""
        folder = self.folder / "model"
        if not folder.is_dir():
            write_model(folder)
        return folder

    def _named(self, word: str) -> str:
        for name, path in self.names.items():
            word = re.sub(rf"(?<![\w/.$-]){name}(?![\w/.-])", str(path), word)
        return word

    def _write_images(self, images: str, labels: str, cases: Sequence[str]) -> None:
        """Images and label maps around the point of docs/match.md."""
        for number, case in enumerate(cases):
            hu, drawn = ct_volume((24, 40, 40), np.random.default_rng(number))
            for array, path in ((hu, f"{images}/{case}_0000.nii.gz"), (drawn, f"{labels}/{case}.nii.gz")):
                (self.folder / path).parent.mkdir(exist_ok=True)
                image = sitk.GetImageFromArray(array)
                image.SetSpacing((1.5, 1.5, 3.0))
                image.SetOrigin((-20.0, -60.0, 70.0))
                sitk.WriteImage(image, str(self.folder / path))
