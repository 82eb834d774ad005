from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.core.files import checked, write_json
from nnssl.core.plans_schema import PlansFile
from nnssl.data.planning import PlanRequest, make_plans, planner_classes
from nnssl.data.raw import read_raw_dataset
from nnssl.data.reader import find_reader
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.networks.build import any_configuration
from nnssl.networks.trusted import trusted_network
from tests.data.conftest import Folders
from tests.phantoms import write_ct_dataset


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("image_reader_writer", "glob"),  # what the modules import
        ("image_reader_writer", "BaseReaderWriter.__init__"),
        ("image_reader_writer", "NoSuchIO"),
        ("image_reader_writer", None),
        ("label_manager", "torch"),
        ("label_manager", "recursive_find_python_class"),
        ("preprocessor_name", "multiprocessing"),
        ("preprocessor_name", "preprocess_case"),
        ("preprocessor_name", "os.system"),
        ("resampling_fn_data", "recursive_find_resampling_fn_by_name"),  # imports modules
        ("resampling_fn_seg", "recursive_find_python_class"),
        ("resampling_fn_seg", "resize"),
        ("resampling_fn_probabilities", "SimpleITKIO"),
        ("resampling_fn_probabilities", 3),
        ("normalization_schemes", "Type"),
        ("normalization_schemes", "np"),
        ("normalization_schemes", "os.system"),
    ],
)
def test_refuse_untrusted_names__what_is_not_of_its_kind(key: str, name: Any, tmp_path: Path) -> None:
    shared = key in ("image_reader_writer", "label_manager")
    configuration = {key: ["CTNormalization", name] if key == "normalization_schemes" else name}
    with pytest.raises(UserError, match=rf"the plans in /a/b.json name {name!r} as {key}"):
        refuse_untrusted_names(configuration if shared else {}, {} if shared else configuration, "/a/b.json")


def test_refuse_untrusted_names__nnunets_own_pass() -> None:
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    for reader in LIST_OF_IO_CLASSES:
        refuse_untrusted_names({"image_reader_writer": reader.__name__, "label_manager": "LabelManager"})
    schemes = ["CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization",
               "RGBTo01Normalization"]  # fmt: skip
    functions = ["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"]
    keys = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
    named = dict(zip(keys, functions, strict=True))
    refuse_untrusted_names({}, {"preprocessor_name": "DefaultPreprocessor", "normalization_schemes": schemes, **named})
    refuse_untrusted_names({}, {})


def test_what_nnunets_planners_write_passes(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2, labelled=True)
    dataset, home = read_raw_dataset(folders.raw, "Dataset001_X"), folders.preprocessed / "Dataset001_X"
    reader = find_reader(dataset)
    window = {"mean": 0.0, "median": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "percentile_00_5": -1.0,
              "percentile_99_5": 1.0}  # fmt: skip
    fingerprint = {"spacings": [[3.0, 1.5, 1.5]] * 2, "shapes_after_crop": [[24, 40, 40]] * 2,
                   "median_relative_size_after_cropping": 1.0,
                   "foreground_intensity_properties_per_channel": {"0": window}}  # fmt: skip
    write_json(home / "dataset_fingerprint.json", fingerprint)
    seen = set()
    for planner in planner_classes():
        plans = make_plans(PlanRequest(planner=planner), dataset, reader, home)
        checked(plans, PlansFile, planner)
        for name in plans["configurations"]:
            resolved = any_configuration(plans, name)
            refuse_untrusted_names(plans, resolved)
            seen.add(trusted_network(resolved)["architecture"]["network_class_name"].rpartition(".")[2])
    assert seen == {"PlainConvUNet", "ResidualEncoderUNet"}


def test_find_reader__a_reader_of_dataset_json_has_to_be_one(folders: Folders) -> None:
    file = write_ct_dataset(folders.raw, 1, "X", 1) / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"overwrite_image_reader_writer": "NibabelIO"}))
    assert find_reader(read_raw_dataset(folders.raw, "Dataset001_X")).__name__ == "NibabelIO"
    file.write_text(json.dumps(content | {"overwrite_image_reader_writer": "np"}))
    with pytest.raises(UserError, match=r"dataset.json.*overwrite_image_reader_writer.*SimpleITKIO"):
        find_reader(read_raw_dataset(folders.raw, "Dataset001_X"))
