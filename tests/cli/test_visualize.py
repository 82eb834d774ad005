from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnssl.checkpoints.files import FINAL
from nnssl.cli.visualize import main
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.pretraining.pretrain import pretrain
from tests.phantoms import write_ct_dataset

pytestmark = pytest.mark.rendered
SHAPE = (20, 36, 32)
QUICK = ["num_epochs=1", "steps_per_epoch=1", "val_steps_per_epoch=1", "patch_size=16,16,16", "batch_size=2"]
MAE = ["token_width=12", "decoder_width=12", "decoder_depth=1", "decoder_heads=2", "warmup_steps=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with a labelled dataset of phantoms and two tiny pretrainings of it."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        _set_folders(patch, root)
        patch.setenv("nnUNet_n_proc_DA", "0")
        write_ct_dataset(root / "raw", 500, "Phantom", 3, shape=SHAPE, labelled=True)
        plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
        for method, options in (("vox2vec", ["voxels_per_pair=64"]), ("mae", MAE)):
            pretrain([500], method, plans="nnsslPlans_tiny", device="cpu", options=[*QUICK, *options])
    return root


@pytest.fixture(autouse=True)
def _folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_folders(monkeypatch, root)


def _set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(root / name))


def _run(root: Path, method: str = "vox2vec") -> str:
    return str(root / "results" / "Dataset500_Phantom" / f"nnssl_{method}__nnsslPlans_tiny__3d_fullres")


def _images(root: Path, count: int = 1) -> list[str]:
    return [str(root / "raw" / "Dataset500_Phantom" / "imagesTr" / f"case_{i:03d}_0000.nii.gz") for i in range(count)]


def _draw(root: Path, folder: Path, kind: str, *arguments: str, method: str = "vox2vec", wide: bool = True) -> Any:
    """Draw a figure; returns its numbers."""
    picture = folder / f"{kind}.png"
    main([kind, "-m", _run(root, method), "-o", str(picture), "-device", "cpu", *arguments])
    data = picture.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and height > 300
    assert not wide or 900 <= width <= 1200
    assert not [file for file in folder.iterdir() if "writing" in file.name]
    return json.loads(picture.with_suffix(".json").read_text())


def test_similarity__of_a_place_in_its_own_image(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = _draw(root, tmp_path, "similarity", "-i", *_images(root), "-p", "16", "18", "10", "--voxel")
    # spacing 1.5, 1.5, 3 mm and origin 0
    np.testing.assert_allclose(numbers["reference"]["mm_lps"], [24, 27, 30], atol=1e-3)
    assert numbers["features"] == "vox2vec, all 4 levels"
    assert numbers["most_similar"]["similarity"] == pytest.approx(1, abs=1e-3)
    shells = numbers["mean_similarity_by_distance"]
    assert shells[0]["similarity"] > shells[-1]["similarity"] and len(numbers["explained_variance"]) == 2
    image: Any = nibabel.load(tmp_path / "similarity.nii.gz")
    assert image.shape == SHAPE[::-1] and image.get_fdata()[16, 18, 10] == pytest.approx(1, abs=1e-3)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"written: {tmp_path / f'similarity.{e}'}" for e in ("png", "json", "nii.gz")]


@pytest.mark.quick
def test_similarity__in_another_image_and_at_a_level_from_a_drawn_place(root: Path, tmp_path: Path) -> None:
    one, other = _images(root, 2)
    arguments = ["-i", one, "-k", other, "-level", "2", "-seed", "3"]
    numbers = _draw(root, tmp_path, "similarity", *arguments)
    assert (numbers["reference"]["image"], numbers["most_similar"]["image"]) == ("case_000", "case_001")
    assert numbers["features"] == "vox2vec, level 2 of 4"
    assert numbers["reference"] == _draw(root, tmp_path, "similarity", *arguments)["reference"]


@pytest.mark.parametrize("step", ["0", "1", "2"])
def test_views__in_the_order_that_is_asked_for(root: Path, tmp_path: Path, step: str) -> None:
    for asked in (["case_000", "case_001"], ["case_001", "case_000"]):
        numbers = _draw(root, tmp_path, "views", "-i", *asked, "-step", step, wide=False)
        assert [name.split("/")[1] for name in numbers["cases"]] == asked


@pytest.mark.quick
def test_pca__colours_the_body_in_the_file_of_the_image(root: Path, tmp_path: Path) -> None:
    numbers = _draw(root, tmp_path, "pca", "-i", *_images(root))
    explained = numbers["explained_variance"]
    assert explained == sorted(explained, reverse=True) and 0 < sum(explained) <= 1
    raw: Any = nibabel.load(_images(root)[0])
    image: Any = nibabel.load(tmp_path / "pca.nii.gz")
    np.testing.assert_allclose(image.affine, raw.affine, atol=1e-5)
    colours = np.asarray(image.dataobj)
    body = raw.get_fdata() > -500
    red = colours["R"]
    assert red.shape == SHAPE[::-1] and red[body].mean() > 50 and (red[0, 0] == 0).all()


@pytest.mark.quick
def test_tsne__places_voxels_of_all_labels(root: Path, tmp_path: Path) -> None:
    arguments = ["-i", *_images(root, 2), "--per_label", "20", "-seed", "1"]
    numbers = _draw(root, tmp_path, "tsne", *arguments)
    assert numbers["voxels"] == {"liver": 20, "spine": 20} and numbers["images"] == ["case_000", "case_001"]
    table = (tmp_path / "tsne.csv").read_text()
    assert len(table.splitlines()) == 41 and table.startswith("image,label,z,y,x,place_1,place_2\ncase_000,liver,")
    _draw(root, tmp_path, "tsne", *arguments)
    assert (tmp_path / "tsne.csv").read_text() == table
    assert list(_draw(root, tmp_path, "tsne", *arguments, "-labels", "spine")["voxels"]) == ["spine"]


@pytest.mark.quick
def test_matches__landmarks_are_found_exactly_in_the_same_image(root: Path, tmp_path: Path) -> None:
    one, other = _images(root, 2)
    numbers = _draw(root, tmp_path, "matches", "-i", one, "-k", one, other)
    assert set(numbers["landmarks"]) == {"liver", "spine"}
    same, second = numbers["matches"]
    assert same["image"] == "case_000" and same["median_error_mm"] < 2.5  # within the cell of 3 x 1.5 x 1.5 mm
    assert second["landmarks"]["liver"]["error_mm"] > 0
    points = ["-p", "16", "18", "10", "-p", "10", "12", "5", "--voxel"]
    numbers = _draw(root, tmp_path, "matches", "-i", one, "-k", other, *points)
    np.testing.assert_allclose(numbers["landmarks"]["point 2"], [15, 18, 15], atol=1e-3)
    assert numbers["matches"][0]["median_error_mm"] is None


@pytest.mark.quick
def test_reconstruction__by_a_version_with_other_networks_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(Path(_run(root, "mae"), "fold_all", FINAL), weights_only=True)
    content["method_state"]["tokens.mask_token"] = torch.zeros(12)  # of a Swin transformer that saw mask tokens
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(SystemExit):
        main(["reconstruction", "-m", str(tmp_path / "old.pth"), "-o", str(tmp_path / "a.png"), "-device", "cpu"])
    assert "old.pth is of a version whose networks were others" in (said := capsys.readouterr().err)
    assert "tokens.mask_token" in said and not (tmp_path / "a.png").exists()


@pytest.mark.quick
def test_views__of_chosen_cases(root: Path, tmp_path: Path) -> None:
    numbers = _draw(root, tmp_path, "views", "-i", "case_001", wide=False)
    assert numbers["cases"] == ["Dataset500_Phantom/case_001"] and numbers["pictures"][0][0]["points"]
    again = _draw(root, tmp_path, "views", "-i", "case_001", "--step", "1", wide=False)
    assert again["pictures"] != numbers["pictures"]


@pytest.mark.quick
def test_reconstruction__of_a_method_that_reconstructs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = _draw(root, tmp_path, "reconstruction", method="mae", wide=False)
    assert numbers["loss"] > 0 and len(numbers["cases"]) == 2
    assert "vox2vec reconstructs nothing; give a run of mae or alice" in _fails(
        capsys, "reconstruction", "-m", _run(root), "-o", str(tmp_path / "a.png")
    )


def test_main__images_and_cases_of_another_modality(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = write_ct_dataset(root / "raw", 18, "Heads", 1, shape=SHAPE, labelled=True)
    (heads / "dataset.json").write_text((heads / "dataset.json").read_text().replace('"CT"', '"T1"'))
    plan_and_preprocess([18], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    try:
        other = str(heads / "imagesTr" / "case_000_0000.nii.gz")
        picture = ["-m", _run(root), "-o", str(tmp_path / "a.png")]
        for kind, *images in (("pca", "-i", other), ("similarity", "-i", *_images(root), "-k", other),
                              ("matches", "-i", *_images(root), "-k", other), ("tsne", "-i", *_images(root), other),
                              ("views", "-i", "Dataset018_Heads/case_000")):  # fmt: skip
            said = _fails(capsys, kind, *picture, *images)
            assert "MR (T1)" in said and "--allow_other_intensities" in said, kind
        assert not list(tmp_path.iterdir())
        _draw(root, tmp_path, "pca", "-i", other, "--allow_other_intensities")
        assert capsys.readouterr().out.count("lets it pass") == 1
    finally:
        shutil.rmtree(heads)
        shutil.rmtree(root / "preprocessed" / heads.name)


def test_main__mistakes_are_one_sentence(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, picture = _images(root)[0], str(tmp_path / "a.png")
    for expected, arguments in (
        ("must end in .png", ["pca", "-m", _run(root), "-i", image, "-o", "a.jpg"]),
        ("holds no finished run", ["pca", "-m", str(tmp_path), "-i", image, "-o", picture]),
        ("-level 9 does not exist", ["pca", "-m", _run(root), "-i", image, "-o", picture, "-level", "9"]),
        ("there is no image", ["pca", "-m", _run(root), "-i", "nothing", "-o", picture]),
        ("the point 900 0 0 is not in", ["pca", "-m", _run(root), "-i", image, "-o", picture, "-p", "900", "0", "0"]),
        ("no preprocessed volume of Dataset500_Phantom/x; name others with -i, such as Dataset500_Phantom/case_000",
         ["views", "-m", _run(root), "-i", "x", "-o", picture]),
    ):  # fmt: skip
        assert expected in _fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error
