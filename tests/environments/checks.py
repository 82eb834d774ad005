"""What must work in an environment into which pip put the wheel."""

from __future__ import annotations

from dataclasses import dataclass

EXTRAS = ("swin", "lapn", "evaluate", "tensorboard", "energy", "interchange")
ONNX = "onnx"  # apart from the others, since it needs a newer torch than the package does


@dataclass(frozen=True)
class Check:
    """A line for bash, run beside the repository's tests in a folder without its package.

    Args:
        name: for the table.
        line: must end with code 0.
    """

    name: str
    line: str


# Every module of the installed package and its trainers.
IMPORTS = """python - <<'PYTHON'
import importlib, pathlib, pkgutil
import nnssl, nnssl_trainers
assert "site-packages" in nnssl.__file__, nnssl.__file__
names = [m.name for p in (nnssl, nnssl_trainers) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    importlib.import_module(name)
for name in nnssl.__all__:
    getattr(nnssl, name)
assert len(list((pathlib.Path(nnssl.__file__).parent / "plans").glob("*.json"))) >= 13
print(len(names), "modules")
PYTHON"""

# Of every file the tests that cost least (`make quick`): these folders, and a file or two for each extra and each room.
_QUICK = "python -m pytest -q -p no:cacheprovider --quick"
_NEED_ONNX = "tests/cli/test_foreign_plans.py tests/cli/test_onnx.py"
_TESTS = """tests/core tests/data tests/cli tests/networks/test_unet.py tests/networks/test_swin.py
tests/networks/test_lapn_unet.py tests/features/test_model.py tests/analysis/test_tsne.py
tests/benchmarking/test_case_scores.py tests/benchmarking/test_evaluate.py tests/interchange/test_exporting.py
tests/pretraining/test_reporting.py tests/finetuning/test_trainer.py tests/classification/test_frozen.py"""

WALK = """python - <<'PYTHON'
import os
from pathlib import Path
from tests.phantoms import write_ct_dataset
raw = Path(os.environ["nnUNet_raw"])
write_ct_dataset(raw, 500, "Thorax", 3)
write_ct_dataset(raw, 17, "Organs", 5, labelled=True)
PYTHON
nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_tiny -device cpu -o num_epochs=1 steps_per_epoch=2 val_steps_per_epoch=1
nnssl_transfer -s 500 -t 17 -np 1
nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_Vox2vecProbe -p nnsslPlans_tinyFrom500_vox2vec -device cpu
mkdir images
cp $nnUNet_raw/Dataset017_Organs/imagesTr/case_000_0000.nii.gz images
nnUNetv2_predict -d 17 -i images -o predicted -c 3d_fullres -f 0 -tr nnUNetTrainer_Vox2vecProbe \\
    -p nnsslPlans_tinyFrom500_vox2vec -device cpu -npp 1 -nps 1
test -s predicted/case_000.nii.gz
"""

CHECKS = (
    Check("doctor", "nnssl_doctor"),
    Check("imports", IMPORTS),
    Check("tests", " ".join([_QUICK, *_TESTS.split(), *(f"--ignore={file}" for file in _NEED_ONNX.split())])),
    Check("pretrain, transfer, train, predict", WALK),
)
ONNX_CHECKS = (Check("onnx", f"{_QUICK} tests/deployment {_NEED_ONNX}"),)
