from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk

import nnssl
from nnssl.analysis.embed import Embedded, _open_folder, embed
from nnssl.analysis.files import is_dense_map, read_vectors, write_dense
from nnssl.core.errors import UserError
from nnssl.features.tiles import dense_features
from tests.features.models import mean_model
from tests.phantoms import ct_volume, mr_volume, write_volume
from tests.pretrainings import tiny_plans, write_pretraining

CASES = ["a", "b", "c"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, name in enumerate(CASES):
        volume, _ = ct_volume((20, 20 + 4 * i, 20), np.random.default_rng(i))
        write_volume(tmp_path / f"images/{name}_0000.nii.gz", volume, (3.0, 1.5, 1.5))
    return tmp_path / "images"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_pretraining(tmp_path / "results", tiny_plans(patch_size=[16, 16, 16])).parent


def _embed(run: Path, images: Path, **options: Any) -> Embedded:
    return embed(run, images, run.parents[3] / "out", device="cpu", **options)


def test_embed__vectors_of_all_cases(run: Path, images: Path) -> None:
    made = _embed(run, images, file_format="csv")
    assert made.cases == CASES and not made.left_out
    assert sorted(f.name for f in made.folder.iterdir()) == ["embedding.json", "vectors.csv", "vectors.npz"]
    with np.load(made.folder / "vectors.npz") as table:
        assert table["vectors"].shape == (3, 120) and table["cases"].tolist() == CASES
        assert table["levels"].tolist() == [0, 8, 24, 56, 120]
        assert len(np.unique(table["vectors"], axis=0)) == 3
    settings = json.loads((made.folder / "embedding.json").read_text())
    assert (settings["method"], settings["cases"], settings["left_out"]) == ("vox2vec", CASES, {})


def test_embed__goes_on_where_it_was_stopped(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: Any, values: np.ndarray, *others: Any) -> np.ndarray:
        if values.shape[2] == 24:
            raise KeyboardInterrupt
        return np.full(120, 7, dtype=np.float32)

    with monkeypatch.context() as patched:
        patched.setattr("nnssl.analysis.embed.body_vector", stop)
        with pytest.raises(KeyboardInterrupt):
            _embed(run, images)
    assert _embed(run, images).cases == CASES
    found = read_vectors(run.parents[3] / "out/vectors.npz")
    assert (found["a"] == 7).all() and not (found["b"] == 7).any()
    _embed(run, images, overwrite=True)
    assert not (read_vectors(run.parents[3] / "out/vectors.npz")["a"] == 7).any()


def test_embed__dense_maps_by_components(run: Path, images: Path) -> None:
    made = _embed(run, images, what="dense", components=3)
    assert made.cases == CASES
    model = nnssl.load_pretrained(run)
    with np.load(made.folder / "pca.npz") as pca:
        components, mean, explained = pca["components"], pca["mean"], pca["explained"]
    assert components.shape == (3, 120) and 0 < explained.sum() <= 1 and (np.diff(explained) <= 0).all()
    np.testing.assert_allclose(components @ components.T, np.eye(3), atol=1e-9)
    values = model.prepare(images / "b").values
    stored = blosc2.open(str(made.folder / "b.b2nd"), mode="r")
    assert stored.shape == (3, *values.shape[1:]) and stored.dtype == np.float16
    dense = dense_features(model, values).astype(np.float64)
    expected = np.einsum("kc,czyx->kzyx", components, dense - mean[:, None, None, None])
    np.testing.assert_allclose(stored[:], expected, atol=0.01 * np.abs(expected).max())
    # by the same components elsewhere, and a seed that is fixed
    again = embed(run, images, made.folder.with_name("again"), "dense", pca=made.folder / "pca.npz", device="cpu")
    np.testing.assert_array_equal(blosc2.open(str(again.folder / "b.b2nd"), mode="r")[:], stored[:])
    refitted = embed(run, images, made.folder.with_name("refitted"), "dense", components=3, device="cpu")
    np.testing.assert_array_equal(blosc2.open(str(refitted.folder / "b.b2nd"), mode="r")[:], stored[:])


def test_embed__further_cases_get_the_same_components(run: Path, images: Path) -> None:
    first = _embed(run, images / "a", what="dense", components=2)
    fitted = (first.folder / "pca.npz").read_bytes()
    kept = (first.folder / "a.b2nd").stat().st_mtime_ns
    assert _embed(run, images, what="dense", components=2).cases == CASES
    assert (first.folder / "pca.npz").read_bytes() == fitted
    assert (first.folder / "a.b2nd").stat().st_mtime_ns == kept
    other = embed(run, images / "c", first.folder.with_name("other"), "dense", components=2, device="cpu")
    write_volume(images / "d_0000.nii.gz", ct_volume((20, 20, 20), np.random.default_rng(9))[0], (3.0, 1.5, 1.5))
    with pytest.raises(UserError, match="holds maps by other components"):
        _embed(run, images, what="dense", pca=other.folder / "pca.npz")


def test_embed__a_landmark_of_the_image_is_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ball in an oblique image of another spacing, transposed and cropped on the way, lies at its place in mm."""
    at, spacing = np.array([10, 34, 26]), np.array([2.5, 1.1, 1.3])
    volume = np.full((24, 60, 52), -100, dtype=np.int16)
    voxels = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    volume[np.linalg.norm((voxels - at) * spacing, axis=-1) < 6] = 400
    volume = np.pad(volume, ((3, 2), (5, 0), (0, 7)))  # nnU-Net cuts zeros off
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((-31.0, 12.0, 7.5))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0))
    sitk.WriteImage(image, str(tmp_path / "ball_0000.nii.gz"))
    ball = image.TransformIndexToPhysicalPoint(np.add(at, (3, 5, 0))[::-1].tolist())
    model = mean_model(transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2])
    monkeypatch.setattr("nnssl.analysis.embed.load_pretrained", lambda path, device: model)
    made = embed("model", tmp_path / "ball", tmp_path / "out", "dense", "nifti", device="cpu")
    found = sitk.ReadImage(str(made.folder / "ball.nii.gz"))  # of one component: three-dimensional
    bright = np.argwhere(sitk.GetArrayFromImage(found) > 1.0)
    places = [found.TransformIndexToPhysicalPoint(cell[::-1].tolist()) for cell in bright]
    assert len(places) > 5
    np.testing.assert_allclose(np.mean(places, 0), ball, atol=1.0)  # cells of 3 x 3 x 1.5 mm


def test_embed__images_that_cannot_be_used_are_left_out(run: Path, images: Path) -> None:
    (images / "bad_0000.nii.gz").write_text("no image")
    write_volume(images / "air_0000.nii.gz", np.full((20, 20, 20), -1000, np.int16), (3.0, 1.5, 1.5))
    made = _embed(run, images)
    assert made.cases == CASES and set(made.left_out) == {"bad", "air"}
    assert "unreadable" in made.left_out["bad"] and "air" in made.left_out["air"]
    dense = embed(run, images, made.folder.with_name("dense"), "dense", level=3, device="cpu")
    assert dense.cases == CASES and set(dense.left_out) == {"bad", "air"}
    with pytest.raises(UserError, match="no image could be used; the first one: unreadable"):
        embed(run, images / "bad", made.folder.with_name("none"), device="cpu")


def test_embed__other_images_have_the_nonzero_mask_as_body(tmp_path: Path) -> None:
    plans = tiny_plans(patch_size=[16, 32, 32], normalization_schemes=["ZScoreNormalization"] * 2,
                       use_mask_for_norm=[False] * 2)  # fmt: skip
    properties = plans["foreground_intensity_properties_per_channel"]
    properties["1"] = dict(properties["0"])
    run = write_pretraining(tmp_path / "results", plans, method="mae").parent
    volume, _ = mr_volume((20, 36, 36), 2, np.random.default_rng(0))
    for channel in range(2):
        write_volume(tmp_path / f"case_{channel:04d}.nii.gz", volume[channel], (3.0, 1.5, 1.5))
    made = embed(run, tmp_path / "case", tmp_path / "out", device="cpu")
    found = read_vectors(made.folder / "vectors.npz")["case"]
    model = nnssl.load_pretrained(run)
    image = model.prepare(tmp_path / "case", with_body=True)
    assert image.body is not None and not image.body.all()
    dense = dense_features(model, image.values)[:, image.body].mean(1, dtype=np.float64)
    np.testing.assert_allclose(found, dense, atol=0.05 * np.abs(dense).max())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"what": "all"}, "-what takes case or dense"),
        ({"file_format": "nifti"}, "-what case is written as npz or csv, not 'nifti'; set -format npz"),
        ({"components": 3}, "are for dense maps; add -what dense"),
        ({"level": 4}, r"there is no level 4; this network has 0 \(stride 1x1x1\), 1"),
        ({"what": "dense", "level": 0, "components": 9}, "-components 9: the features have 8 channels"),
        ({"what": "dense", "pca": "none.npz"}, "there is no file none.npz"),
    ],
)
def test_embed__arguments_are_checked_before_anything_is_computed(
    run: Path, images: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        _embed(run, images, **options)
    assert not (run.parents[3] / "out").exists()


def test_embed__a_folder_of_other_things_is_not_written_to(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds other files; give a new folder"):
        embed(run, images, images, "dense", "nifti", components=3, device="cpu", overwrite=True)
    made = _embed(run, images, level=3)
    with pytest.raises(UserError, match="holds embeddings with another level"):
        _embed(run, images)
    other = write_pretraining(tmp_path / "others", tiny_plans(patch_size=[16, 16, 16]), seed=2).parent
    for model in (other, f"random:{run}"):
        with pytest.raises(UserError, match="holds embeddings with another weights"):
            embed(model, images, made.folder, level=3, device="cpu")
    embed(f"random:{run}", images / "a", tmp_path / "random", level=3, device="cpu")
    assert json.loads((tmp_path / "random/embedding.json").read_text())["checkpoint"].startswith("random:")
    moved = run.rename(run.with_name("fold_0"))
    assert _embed(moved, images, level=3).cases == CASES  # the same weights elsewhere
    assert _embed(moved, images, what="dense", level=3, overwrite=True).cases == CASES
    assert not (made.folder / "vectors.npz").exists()


def test_open_folder__what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    settings = {"what": "dense", "format": "nifti", "method": "vox2vec", "weights": "0"}
    _open_folder(tmp_path / "out", settings, overwrite=False)
    left = tmp_path / "out" / ".case.nii.gz.7.nii.gz.npy"
    for file in (left, tmp_path / "out" / "case.nii.gz"):
        file.write_bytes(b"")
    _open_folder(tmp_path / "out", settings, overwrite=False)
    assert not left.exists() and (tmp_path / "out" / "case.nii.gz").exists()


def test_open_folder__overwriting_removes_dense_maps_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"what": "dense", "format": "nifti", "method": "vox2vec", "weights": "0"}
    _open_folder(out, settings, overwrite=False)
    shape, notes = (1, 2, 2, 2), {"method": "vox2vec", "what": "dense"}
    for ending, kind in ((".nii.gz", "nifti"), (".b2nd", "blosc2")):
        write_dense(out / f"map{ending}", kind, shape, np.eye(4), lambda array: None, notes, (2, 2, 2))
        assert is_dense_map(out / f"map{ending}")
    (out / "segmentation.nii.gz").write_bytes(b"a day's work")
    with pytest.raises(UserError, match=r"segmentation\.nii\.gz"):
        _open_folder(out, settings, overwrite=True)
    assert len(list(out.iterdir())) == 4
    (out / "segmentation.nii.gz").unlink()
    _open_folder(out, settings, overwrite=True)
    assert [file.name for file in out.iterdir()] == ["embedding.json"]
