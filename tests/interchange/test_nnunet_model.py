from __future__ import annotations

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.nnunet_model import res_enc_l
from nnssl.checkpoints.runs import RunFilter, is_run, read_run, source_argument
from nnssl.core.errors import UserError
from nnssl.networks.build import resolve_configuration, segmentation_of
from tests.finetuning.plans import small_plans
from tests.interchange.files import (
    assert_same_maps,
    decoder_maps,
    imported,
    nnunet_checkpoint,
    randomised,
    saved,
)


def _trained(kind: str = "PlainConvUNet", **options: Any) -> tuple[dict[str, Any], Any]:
    """Plans, and a network for three classes that was trained with them."""
    plans = small_plans(kind, "Dataset291_Organs", **options)
    return plans, randomised(segmentation_of(resolve_configuration(plans, "3d_fullres"), 3))


def _model_folder(root: Path, content: dict[str, Any], folds: tuple[str, ...] = ("0",)) -> Path:
    folder = root / "Dataset291_Organs" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold in folds:
        saved(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    for name in ("plans", "dataset_json"):
        (folder / f"{name.removesuffix('_json')}.json").write_text(json.dumps(content["init_args"][name]))
    return folder


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet", "FPN3dUNet"])
def test_nnunet__a_model_folder_is_a_pretraining_as_it_is(kind: str, tmp_path: Path) -> None:
    plans, network = _trained(kind)
    folder = _model_folder(tmp_path, nnunet_checkpoint(plans, network))
    maps = network.backbone if kind == "FPN3dUNet" else lambda x: decoder_maps(network, x)
    assert_same_maps(folder, maps, (8, 16, 32))
    content = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert (content["method"], content["levels"]) == ("imported", "decoder")
    assert content["plans"]["dataset_name"] == "Dataset291_Organs"


def test_nnunet__its_zip_and_one_checkpoint_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, network = _trained()
    folder = _model_folder(tmp_path, nnunet_checkpoint(plans, network), ("0", "1"))
    archive = tmp_path / "model"
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                written.write(file, file.relative_to(tmp_path))
    with pytest.raises(UserError, match=r"holds 2 files of weights.*unpack it.*-f FOLD"):
        imported(archive, tmp_path, monkeypatch)
    for source, fold in ((archive, "1"), (folder, "0"), (folder / "fold_0" / "checkpoint_final.pth", None)):
        run = imported(source, tmp_path, monkeypatch, fold=fold, licence="Apache 2.0", overwrite=True)
        assert run.folder == tmp_path / "results/Dataset900_Public/nnssl_imported__nnUNetPlans__3d_fullres/fold_all"
        assert_same_maps(run.folder, lambda x: decoder_maps(network, x), (8, 16, 32))
        report = json.loads((run.folder / "import_report.json").read_text())
        assert set(report["left"]) == {n for n in (f"network.{k}" for k in network.state_dict()) if ".seg_layers" in n}
        assert len(report["mapped"]) == report["tensors_mapped"] == len(network.state_dict()) - len(report["left"])
        assert json.loads((run.folder / "config.json").read_text())["imported"]["licence"] == "Apache 2.0"


def test_nnunet__a_fine_tuning_of_its_development_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plans name ResEncL without arguments, and have names that nnU-Net itself would split."""
    small = copy.deepcopy(res_enc_l())
    small["arch_kwargs"].update(features_per_stage=[2, 2, 4, 4, 6, 6], n_blocks_per_stage=[1] * 6)
    monkeypatch.setattr("nnssl.checkpoints.nnunet_model.res_enc_l", lambda: small)
    plans = small_plans("ResidualEncoderUNet", name="ptPlans__mae____Spacing__1.00", scheme="ZScoreNormalization",
                        architecture=small, spacing=[1.0, 1.0, 1.0])  # fmt: skip
    network = randomised(segmentation_of(resolve_configuration(plans, "3d_fullres"), 2))
    plans["configurations"]["3d_fullres"]["architecture"] = {"network_class_name": "ResEncL", "arch_kwargs": None,
                                                             "_kw_requires_import": None}  # fmt: skip
    file = saved(nnunet_checkpoint(plans, network), tmp_path / "checkpoint_final.pth")
    run = imported(file, tmp_path, monkeypatch)
    assert run.folder.parent.name == "nnssl_imported__ptPlans_mae_Spacing_1.00__3d_fullres"
    assert_same_maps(run.folder, lambda x: decoder_maps(network, x), (32, 32, 64))


def test_res_enc_l__is_the_network_of_that_name() -> None:
    with torch.device("meta"):
        network = segmentation_of({"architecture": res_enc_l(), "normalization_schemes": ["ZScoreNormalization"]}, 2)
    keys = network.state_dict().keys()
    assert len(keys) == 956 and sum(key.startswith("encoder.") for key in keys) == 448
    assert sum(p.numel() for p in network.parameters()) == 102_349_770


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": [16, 16], "spacing": [1.0, 1.0]}, "not three-dimensional"),
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
    ],
)
def test_nnunet__other_dimensions_and_cascades_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    plans, network = _trained()
    plans["configurations"]["3d_fullres"].update(change)
    file = saved(nnunet_checkpoint(plans, network), tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"c.pth.*{said}"):
        load_checkpoint(file)


def test_nnunet__a_fine_tuning_of_this_package(tmp_path: Path) -> None:
    """The plans' whole network inside of ours; what changes the image's intensities first cannot be read."""
    plans, network = _trained()
    plans["nnssl"] = {"checkpoint": "random", "network": {"levels": "decoder", "head": "unet", "intensity": None}}
    content = nnunet_checkpoint(plans, network)
    content["network_weights"] = {f"network.{k}": v for k, v in network.state_dict().items()}
    assert_same_maps(saved(content, tmp_path / "c.pth"), lambda x: decoder_maps(network, x), (8, 16, 32))
    plans["nnssl"]["network"]["intensity"] = [{"scale": 1.0}]
    with pytest.raises(UserError, match="a training of this package"):
        load_checkpoint(saved(content, tmp_path / "c.pth"))


def test_read_run__a_fold_of_a_model_folder(tmp_path: Path) -> None:
    plans, network = _trained()
    folder = _model_folder(tmp_path, nnunet_checkpoint(plans, network), ("0", "1"))
    assert is_run(str(folder)) and is_run(folder) and is_run("./17")
    assert not any(is_run(source) for source in (17, "17", "Dataset017_Target", "unknown"))
    read = read_run(folder, RunFilter(fold="1"))
    assert read.path.parent.name == "fold_1" and source_argument(read) == str(folder / "fold_1")
    assert read_run(folder / "fold_0", RunFilter(method="random")).method == "imported"
    with pytest.raises(UserError, match="holds 2 finished runs"):
        read_run(folder, RunFilter())
    with pytest.raises(UserError, match=r"not that of vox2vec \(imported\).*leave out -m, -p and -c"):
        read_run(folder, RunFilter(method="vox2vec", fold="0"))


def test_nnunet__a_changed_byte_is_found(tmp_path: Path) -> None:
    plans, network = _trained()
    content = nnunet_checkpoint(plans, network) | {"mark": torch.full((1000,), 1.5)}
    file = saved(content, tmp_path / "c.pth")
    changed = bytearray(file.read_bytes())
    changed[changed.index(b"\0\0\xc0\x3f" * 10)] ^= 1
    file.write_bytes(changed)
    with pytest.raises(UserError, match=r"c.pth .* is damaged"):
        load_checkpoint(file)


def test_nnunet__a_network_that_is_not_that_of_its_plans_is_refused(tmp_path: Path) -> None:
    plans, network = _trained()
    content = nnunet_checkpoint(plans, network)
    content["network_weights"] = {k: v for k, v in network.state_dict().items() if "encoder.stages.0" not in k}
    with pytest.raises(UserError, match=r"lacks 4 of \d+ tensors"):
        load_checkpoint(saved(content, tmp_path / "c.pth"))
