from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from nnssl.checkpoints.runs import Run
from nnssl.classification.export import is_classifier
from nnssl.classification.heads import LinearHead
from nnssl.classification.model import MODEL, Network, load_classifier, save_classifier
from nnssl.cli.export_onnx import main
from nnssl.core.errors import UserError
from nnssl.features.model import model_of
from tests.classification.data import target_of
from tests.pretrainings import checkpoint_content
from tests.runs import DATASET_JSON, fpn_plans


def _saved(folder: Path) -> Path:
    content = checkpoint_content(fpn_plans(), DATASET_JSON)
    model = model_of(Run(folder, content))
    weights = np.random.default_rng(0).normal(size=(3, sum(model.channels)))
    head = LinearHead(weights - weights.mean(0), np.array([0.5, -0.5, 0.0]), True)
    network = Network(content, model.backbone.state_dict(), model.levels, model.backbone.finest, None, model.patch_size)
    file = folder / "fold_2" / MODEL
    file.parent.mkdir()
    save_classifier(file, network, head, target_of([0, 1, 2], ["a", "b", "c"]), "frozen", "vox2vec")
    return file


@pytest.mark.slow
def test_main__onnx_gives_the_scores_of_the_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = _saved(tmp_path), tmp_path / "grade.onnx"
    assert is_classifier(file) and not is_classifier(tmp_path)
    (tmp_path / "classification.json").write_text("{}")
    main(["-m", str(tmp_path), "-f", "2", "-o", str(output)])
    assert "grade, largest difference" in capsys.readouterr().out
    one, rng = load_classifier(file), np.random.default_rng(1)
    image = rng.normal(size=(1, 8, 16, 16)).astype(np.float32)
    body = rng.random((8, 16, 16)) < 0.3
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image[None], "body": body[None, None].astype(np.float32)})
    assert found[0] == pytest.approx(one.predict(image, body, "cpu"), abs=1e-4)
    assert session.get_modelmeta().custom_metadata_map["nnssl.classes"] == '["a", "b", "c"]'
    with pytest.raises(SystemExit):
        main(["-m", str(tmp_path), "-f", "7", "-o", str(output)])
    assert "of fold 7" in capsys.readouterr().err


def test_load_classifier__a_head_that_does_not_fit(tmp_path: Path) -> None:
    file = _saved(tmp_path)
    one = load_classifier(file)
    content = checkpoint_content(fpn_plans(), DATASET_JSON)
    short = LinearHead(one.head.weights[:, :-1], one.head.bias, True)
    network = Network(content, one.model.backbone.state_dict(), one.model.levels, 0, None, (8, 16, 16))
    save_classifier(file, network, short, target_of([0, 1, 2], ["a", "b", "c"]), "frozen", "vox2vec")
    with pytest.raises(UserError, match="its head has the shape"):
        load_classifier(file)
    beyond = Network(content, one.model.backbone.state_dict(), one.model.levels, 0, 9, (8, 16, 16))
    save_classifier(file, beyond, one.head, target_of([0, 1, 2], ["a", "b", "c"]), "frozen", "vox2vec")
    with pytest.raises(UserError, match="reads level 9"):
        load_classifier(file)
