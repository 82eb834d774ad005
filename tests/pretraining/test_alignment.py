"""Pairs by a pixel encoder, from the command line to the checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.pretrained import read_pixel_encoder
from nnssl.cli.pretrain import main
from nnssl.core.errors import UserError
from nnssl.data.loader import Cases, RelativePosition
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.planning import load_plans
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.features.stored import EmbeddingAligner, open_embeddings
from nnssl.features.tiles import EncodedImage
from nnssl.methods.alice.method import AliceConfig
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.alignment import VolumeEncoder, choose_aligner, prepare_embeddings, resampled_size
from nnssl.pretraining.setup import Setup
from tests.phantoms import write_ct_dataset
from tests.pretrainings import write_pretraining

DATASET = "Dataset500_Phantom"
RUN = f"{DATASET}/nnssl_alice__nnsslPlans_tiny__3d_fullres/fold_all"
ARGUMENTS = ["-d", "500", "-m", "alice", "-p", "nnsslPlans_tiny", "-device", "cpu", "-o", "num_epochs=1",
             "steps_per_epoch=1", "val_steps_per_epoch=1", "batch_size=2", "patch_size=16,32,32", "token_width=12",
             "decoder_width=12", "decoder_depth=1", "decoder_heads=2", "head_dim=8", "head_hidden=16",
             "head_bottleneck=6", "match_draws=4", "match_threshold=0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with a preprocessed dataset."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        write_ct_dataset(root / "raw", 500, "Phantom", 3, shape=(20, 32, 32))
        plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    yield root


@pytest.fixture
def root(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def _plans(root: Path, **changes: Any) -> dict[str, Any]:
    plans = load_plans(root / "preprocessed" / DATASET, "nnsslPlans_tiny")
    assert plans is not None
    plans["configurations"]["3d_fullres"].update({"patch_size": [16, 16, 16], **changes})
    return plans


def _encoder(root: Path, method: str = "sam", **changes: Any) -> Path:
    return write_pretraining(root / "results", _plans(root, **changes), method=method)


def _setup(root: Path, aligner: Any) -> Setup:
    plans = _plans(root)
    folder = VolumeFolder.from_plans(root / "preprocessed", DATASET, plans, "3d_fullres")
    cases = folder.cases()
    return Setup("alice", AliceConfig(), plans, {}, {}, "3d_fullres", "all", Cases.of([folder], [cases[:2]]),
                 Cases.of([folder], [cases[2:]]), root / "run", aligner=aligner,
                 resolved=resolve_configuration(plans, "3d_fullres"))  # fmt: skip


def _choose(root: Path, asked: str | Path | None = None) -> Any:
    return choose_aligner(asked, AliceConfig(match_back_mm=5.0), [DATASET], root / "results")


def test_choose_aligner__finds_the_only_pixel_encoder_of_the_datasets(root: Path) -> None:
    assert _choose(root) == RelativePosition()
    write_pretraining(root / "results", _plans(root), method="vox2vec")
    assert _choose(root) == RelativePosition(), "its method encodes no pixels"
    sam = _encoder(root)
    found = _choose(root)
    assert found == EmbeddingAligner(sam.resolve(), "sam", found.key, 0.7, 101, 5.0)
    assert _choose(root, sam.parent) == found and _choose(root, "position") == RelativePosition()
    assert choose_aligner(None, AliceConfig(), ["Dataset501_Other"], root / "results") == RelativePosition()
    moved = shutil.copy(sam, root / "moved.pth")
    assert _choose(root, moved).identity == found.identity
    lapn = _encoder(root, "lapn")
    assert _choose(root, lapn).identity != found.identity
    with pytest.raises(UserError, match=r"2 finished pretrainings.*\n  -alignment .*\n  -alignment .*\n.* position"):
        _choose(root)


def test_choose_aligner__refuses_what_encodes_no_pixels(root: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        _choose(root, root / "nowhere.pth")
    other = write_pretraining(root / "results", _plans(root), method="vox2vec")
    with pytest.raises(UserError, match=r"does not encode single pixels; give a checkpoint of lapn or sam"):
        _choose(root, other)


@pytest.mark.parametrize("method", ["sam", "lapn"])
def test_prepare_embeddings__once_a_volume(
    root: Path, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "nnssl")
    setup = _setup(root, _choose(root, _encoder(root, method)))
    assert isinstance(setup.aligner, EmbeddingAligner)
    folder = setup.train.folders[0]
    with pytest.raises(UserError, match=r"3 volumes have no encodings .* without torchrun"):
        prepare_embeddings(setup, "cpu", may_compute=False)
    prepare_embeddings(setup, "cpu", may_compute=True)
    encoded = open_embeddings(folder, "case_000", setup.aligner.key)
    own = read_pixel_encoder(setup.aligner.checkpoint).encoder.strides["fine"]
    factors = np.array(encoded.strides["fine"]) // own
    cell = np.array(own) * folder.spacing
    assert ((factors == 1) | (factors * cell <= 4.01)).all() and (2 * factors * cell > 4).all()
    assert (factors > 1).any() == (method == "lapn"), "whose cells are voxels"
    size = sum(t.numel() * t.element_size() for t in (*encoded.maps.values(), *encoded.lengths.values()))
    assert f"encoded 3 of 3 volumes, {size:,.0f} bytes a volume" in caplog.text
    calls: list[str] = []

    def counted(encoder: VolumeEncoder, volume: BloscVolume) -> EncodedImage:
        calls.append(volume.case)
        return encoded

    monkeypatch.setattr(VolumeEncoder, "__call__", counted)
    prepare_embeddings(setup, "cpu", may_compute=False)
    assert not calls and "the encodings of all 3 volumes are in" in caplog.text
    home = folder.images.with_name(f"{folder.images.name}_embeddings_{setup.aligner.key}")
    (home / "case_001.json").unlink()  # as if the run had been killed before
    prepare_embeddings(setup, "cpu", may_compute=True)
    assert calls == ["case_001"]
    volume = folder.open("case_000")
    match = setup.aligner.match(volume, folder.open("case_002"), np.random.default_rng(0))
    assert -1 <= match.similarity <= 1.001 and (match.other_point < match.other.size).all()


@pytest.mark.parametrize("same", [True, False])
def test_prepare_embeddings__says_that_the_encoder_knows_no_places(
    root: Path, same: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(0)

    def encode(encoder: VolumeEncoder, volume: BloscVolume) -> EncodedImage:
        z, y, x = (int(n) for n in volume.size)
        values = torch.ones(8, z, y, x) if same else torch.randn(8, z, y, x, generator=rng)
        return EncodedImage({"fine": values.half()}, {"fine": (1, 1, 1)}, (z, y, x))

    monkeypatch.setattr(VolumeEncoder, "__call__", encode)
    prepare_embeddings(_setup(root, _choose(root, _encoder(root))), "cpu", may_compute=True)
    assert (
        "100% of a volume is as similar to a point as the best match there (median similarity 1.00;" in caplog.text
    ) == same


def test_volume_encoder__brings_volumes_to_the_encoders_spacing_and_intensities(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nnssl")
    spacing = [2 * mm for mm in _plans(root)["configurations"]["3d_fullres"]["spacing"]]
    setup = _setup(root, _choose(root, _encoder(root, spacing=spacing)))
    prepare_embeddings(setup, "cpu", may_compute=True)
    assert isinstance(setup.aligner, EmbeddingAligner)
    volume = setup.train.folders[0].open("case_000")
    encoded = open_embeddings(volume.folder, "case_000", setup.aligner.key)
    assert list(encoded.size) == resampled_size(volume.size.tolist(), volume.spacing, spacing)
    same = setup.aligner.match(volume, volume, np.random.default_rng(0))
    fine = np.multiply(encoded.strides["fine"], 2)
    assert same.similarity == pytest.approx(1, abs=2e-3) and (np.abs(same.point - same.other_point) <= fine).all()


def test_volume_encoder__refuses_other_axes_and_warns_of_another_orientation(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = _setup(root, _choose(root, _encoder(root)))
    prepare_embeddings(replace(setup, orientation="RAS"), "cpu", may_compute=True)
    assert "(LPS): most volumes of Dataset500_Phantom (RAS)" in caplog.text
    turned = write_pretraining(root / "results", _plans(root) | {"transpose_forward": [1, 0, 2]}, method="lapn")
    with pytest.raises(UserError, match=r"axes \[1, 0, 2\].*-alignment position"):
        prepare_embeddings(_setup(root, _choose(root, turned)), "cpu", may_compute=True)


def test_pretrain__pairs_by_an_encoder_and_goes_on_with_no_other(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = _encoder(root)
    main([*ARGUMENTS, "-alignment", str(encoder)])
    run = root / "results" / RUN
    identity = load_checkpoint(run / "checkpoint_final.pth")["aligner"]
    assert identity.startswith("sam ")
    capsys.readouterr()
    main([*ARGUMENTS, "--c"])  # the only one is found
    for asked, fix in (("position", "-alignment CHECKPOINT"), (str(_encoder(root, "lapn")), identity)):
        with pytest.raises(SystemExit):
            main([*ARGUMENTS, "--c", "-alignment", asked])
        said = capsys.readouterr().err
        assert "began with volumes paired by sam" in said and fix in said and "--overwrite" in said
    content = torch.load(run / "checkpoint_final.pth", weights_only=True)
    del content["aligner"]  # a run of before
    torch.save(content, run / "checkpoint_final.pth")
    with pytest.raises(SystemExit):
        main([*ARGUMENTS, "--c", "-alignment", str(encoder)])
    assert "continue it with the same -alignment position" in capsys.readouterr().err


def test_pretrain__refuses_an_alignment_that_the_method_does_not_need(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "500", "-m", "mae", "-p", "nnsslPlans_tiny", "-device", "cpu", "-alignment", "position"])
    assert "-alignment is for methods that pair volumes, and mae does not" in capsys.readouterr().err
