"""LAPN's whole workflow by commands: encode, segment with partial labels, distil, export, predict, match."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.phantoms import ct_volume, write_ct_dataset, write_volume
from tests.shell import Walk, volume

TARGET = "Dataset017_Organs"
PLANS = "nnsslPlans_tinyFrom500_lapn"
STUDENT = f"nnUNetTrainer_LAPNDistill__{PLANS}__3d_fullres"
ANNOTATED: dict[str, list[str]] = {"case_003": [], "case_004": ["liver"]}  # and everything in the other three
SPACING = (3.0, 1.5, 1.5)
COMMANDS = f"""
nnssl_pretrain -d 500 -m lapn -p nnsslPlans_tiny -device cpu -o num_epochs=1 steps_per_epoch=2 val_steps_per_epoch=1
nnssl_transfer -s 500 -t 17 -m lapn
nnssl_annotated_labels check -d 17 --write
export nnssl_num_epochs=1 nnssl_num_iterations_per_epoch=2 nnssl_num_val_iterations_per_epoch=1
nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_LAPN -p {PLANS} -device cpu
nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_LAPNDistill -p {PLANS} -device cpu
mv $nnUNet_results/Dataset500_Thorax gone
mv $nnUNet_results/{TARGET}/nnUNetTrainer_LAPN__{PLANS}__3d_fullres teacher
IN=$nnUNet_raw/{TARGET}/imagesTs
nnUNetv2_predict_from_modelfolder -i $IN -o by_teacher -m teacher -f 0 -device cpu -npp 1 -nps 1
STUDENT=$nnUNet_results/{TARGET}/{STUDENT}
nnUNetv2_predict_from_modelfolder -i $IN -o predicted -m $STUDENT -f 0 -device cpu -npp 1 -nps 1
nnssl_export_onnx -m $STUDENT -f 0 -o student.onnx
nnssl_predict_onnx -i $IN -o predicted_onnx -m student.onnx -device cpu -npp 1 -nps 1
nnssl_efficiency -m student.onnx -i $IN -device cpu -o student.csv
nnssl_match -m gone/nnssl_lapn__nnsslPlans_tiny__3d_fullres -device cpu -q $nnUNet_raw/{TARGET}/imagesTr/case_000 \\
    -k $IN/case_000 -p 12 20 20 --voxel -o match.png
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The workflow, done; `printed.txt` holds what the commands said."""
    walk = Walk(tmp_path_factory.mktemp("lapn"))
    write_ct_dataset(walk.raw, 500, "Thorax", 3)
    target = write_ct_dataset(walk.raw, 17, "Organs", 5, labelled=True)
    content = json.loads((target / "dataset.json").read_text()) | {"annotated_labels": ANNOTATED}
    (target / "dataset.json").write_text(json.dumps(content))
    for case, kept in (("case_003", 0), ("case_004", 1)):
        labels = volume(target / "labelsTr", case)
        write_volume(target / "labelsTr" / f"{case}.nii.gz", labels * (labels == kept), SPACING)
    for folder in ("imagesTs", "imagesUn"):
        hu, _ = ct_volume((24, 40, 40), np.random.default_rng(7))
        write_volume(target / folder / "case_000_0000.nii.gz", hu, SPACING)
    (walk.folder / "printed.txt").write_text(walk.run(COMMANDS))
    yield walk
    shutil.rmtree(walk.folder)


def test_student__predicts_the_same_with_onnx_runtime(walk: Walk) -> None:
    torch_labels, onnx_labels = volume(walk.folder / "predicted"), volume(walk.folder / "predicted_onnx")
    assert torch_labels.shape == (24, 40, 40)
    assert (torch_labels != onnx_labels).mean() < 1e-3


def test_teacher__predicts_without_the_pretraining(walk: Walk) -> None:
    assert volume(walk.folder / "by_teacher").shape == (24, 40, 40)


def test_student__saw_the_volumes_without_labels(walk: Walk) -> None:
    """`imagesUn` was preprocessed once, and said so; a case whose list is empty needs nothing."""
    prepared = walk.folder / "nnUNet_preprocessed" / TARGET / "nnsslPlans_tinyFrom500_3d_fullres_unlabelled"
    assert sorted(file.name for file in prepared.glob("*.b2nd"))[0] == "case_000.b2nd"
    assert "imagesUn" in (walk.folder / "printed.txt").read_text()


def test_efficiency__is_a_row_a_case(walk: Walk) -> None:
    with open(walk.folder / "student.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds"]) > 0


def test_match__is_printed_and_drawn(walk: Walk) -> None:
    printed = (walk.folder / "printed.txt").read_text()
    assert "similarity" in printed
    assert Path(walk.folder / "match.png").stat().st_size > 10_000
