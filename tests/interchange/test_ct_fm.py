from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from tests.interchange.files import assert_same_maps, imported, randomised, saved


def _source(norm: str = "batch") -> Any:
    from monai.networks.nets.segresnet_ds import SegResNetDS

    torch.manual_seed(0)
    return randomised(SegResNetDS(init_filters=4, blocks_down=(1, 2, 1), norm=norm))


@pytest.mark.parametrize("part", ["network", "encoder", "pretraining"])
def test_ct_fm__the_imported_encoder_gives_the_same_maps(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    source = _source()
    encoder: dict[str, Tensor] = source.encoder.state_dict()
    file = tmp_path / "weights" / "model"
    file.parent.mkdir()
    if part == "pretraining":
        content = {f"model.backbone.{name}": tensor for name, tensor in encoder.items()}
        saved({"state_dict": content | {"model.projection_head.0.weight": torch.ones(2)}}, file)
    else:
        save_file(encoder if part == "encoder" else source.state_dict(), file)
    run = imported(file, tmp_path, monkeypatch)
    assert run.about["family"] == "ct_fm" and run.about["tensors_mapped"] == len(encoder)
    assert run.about["levels"] == "encoder" and run.about["axes"] == "zyx"
    assert bool(run.about["tensors_left"]) == (part != "encoder")
    assert_same_maps(run.folder, source.encoder, (8, 12, 16))


def test_ct_fm__another_segresnet_ds_is_of_no_known_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no known family"):
        imported(saved(_source("instance").state_dict(), tmp_path / "w"), tmp_path, monkeypatch)
