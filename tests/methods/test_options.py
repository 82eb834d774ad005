from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.methods.base import FORMERLY_FIXED
from nnssl.methods.options import from_plain, new_options, override, to_plain
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.vox2vec.method import Vox2vecConfig


def test_override__values_are_read_as_their_type() -> None:
    options = ["num_epochs=3", "learning_rate=1e-2", "patch_size=32,48,40", "views_from_one_volume=true",
               "reduction=sum", "gradient_clip=none", "batch_size=4", "betas=0.9,0.95"]  # fmt: skip
    config = override(Vox2vecConfig(), options)
    assert (config.num_epochs, config.learning_rate, config.patch_size) == (3, 0.01, (32, 48, 40))
    assert (config.views_from_one_volume, config.reduction, config.gradient_clip) == (True, "sum", None)
    assert (config.batch_size, config.betas) == (4, (0.9, 0.95))
    assert Vox2vecConfig().num_epochs == 1000, "the defaults were changed"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("colour=3", "there is no option 'colour'; every method has .*num_epochs=1000.*temperature=0.1"),
        ("epochs=3", r"there is no option 'epochs'; did you mean num_epochs\? \(-o help=1 lists all\)$"),
        ("temperatur=0.1", r"did you mean temperature\? \(-o help=1 lists all\)$"),
        ("num_epochs", "key=value"),
        ("num_epochs=many", "num_epochs takes integer, not 'many'"),
        ("num_epochs=1.5", "num_epochs takes integer"),
        ("reduction=average", "one of mean, sum"),
        ("patch_size=32,32", "3 comma-separated integers or none"),
        ("views_from_one_volume=1", "true or false"),
        ("num_epochs=0", "num_epochs must be at least 1"),
        ("batch_size=-2", "batch_size must be from 1"),
        ("learning_rate=nan", "learning_rate must be"),
        ("learning_rate=-1", "learning_rate must be"),
        ("patch_size=0,32,32", "patch_size must be from 1"),
        ("temperature=0.001", "temperature must be at least"),
        ("betas=2,0.9", "betas must be at least 0 and below 1"),
        ("seed=99999999999999999999999", "seed must be finite and below 2\\^63"),
        ("voxels_per_pair=0", "voxels_per_pair must be at least 1"),
        ("learning_rate=1e400", "learning_rate must be finite"),
        ("weight_decay=inf", "weight_decay must be finite"),
        ("betas=0.9,nan", "betas must be finite"),
        ("num_epochs=1e3", "num_epochs takes integer"),
        ("num_epochs=" + "9" * 5000, "num_epochs takes integer, not '999"),
        ("num_epochs=", "num_epochs takes integer"),
        ("optimiser=", "one of adam"),
        ("patch_size=", "3 comma-separated"),
        ("patch_size=8,8,8,8", "3 comma-separated"),
        ("patch_size=8,,8", "3 comma-separated"),
        ("patch_size=99999,8,8", "patch_size must be from 1 to 10,000"),
        ("batch_size=1000000000", "batch_size must be from 1 to 100,000"),
        ("num_epochs=1000000", "num_epochs=1000000 .* more than"),
        ("=3", "no option ''"),
        ("noise_sigma_hu=10,0", "noise_sigma_hu must be LOW,HIGH"),
        ("noise_sigma_hu=-1,0", "noise_sigma_hu must be LOW,HIGH from 0"),
        ("noise_sigma_hu=10", "noise_sigma_hu takes 2 comma-separated numbers"),
        ("blur_sigma_voxels=0,1", "blur_sigma_voxels must be LOW,HIGH from 0.01"),
        ("sharpen_detail_sigma_voxels=1e9", "sharpen_detail_sigma_voxels must be from 0.01 to 100"),
        ("noise_probability=1.5", "noise_probability must be from 0 to 1"),
        ("window_low_hu=-100,400", "window_low_hu must end below 300"),
    ],
)
def test_override__mistakes_name_the_fix(option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Vox2vecConfig(), [option])


def test_plain__there_and_back() -> None:
    config = override(Vox2vecConfig(), ["patch_size=1,2,3", "num_epochs=7"])
    assert from_plain(Vox2vecConfig, to_plain(config)) == config
    with pytest.raises(UserError, match="gone"):
        from_plain(Vox2vecConfig, {**to_plain(config), "gone": 1})


def test_get_method__an_unknown_name_lists_the_methods() -> None:
    with pytest.raises(UserError, match="vox2vec"):
        get_method("vox3vec")


@pytest.mark.parametrize("name", method_names())
def test_registry__every_method_has_frozen_hyper_parameters_with_defaults(name: str) -> None:
    config = get_method(name).config_class()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_epochs = 1  # type: ignore[misc]


def test_override__a_key_twice() -> None:
    with pytest.raises(UserError, match="seed twice"):
        override(Vox2vecConfig(), ["seed=1", "seed=2"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_epochs", "10"), ("num_epochs", 1.5), ("amsgrad", 1), ("learning_rate", True),
     ("learning_rate", float("nan")), ("patch_size", [8, 8]), ("patch_size", 8), ("optimiser", "lion"),
     ("betas", [0.9, "0.99"]), ("seed", None), ("gradient_clip", {})],
)  # fmt: skip
def test_from_plain__values_of_other_types(name: str, value: Any) -> None:
    """They come from checkpoints, which may be damaged or of another hand."""
    with pytest.raises(UserError, match=rf"{name} \("):
        from_plain(Vox2vecConfig, {**to_plain(Vox2vecConfig()), name: value})


@pytest.mark.parametrize("method", method_names())
def test_from_plain__takes_what_every_method_stores(method: str) -> None:
    config = get_method(method).config_class()
    assert from_plain(type(config), json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize("method", method_names())
def test_config__probabilities_are_from_0_to_1(method: str) -> None:
    config_class = get_method(method).config_class
    for name in (f.name for f in dataclasses.fields(config_class) if f.name.endswith("_probability")):
        for option in (f"{name}=-0.1", f"{name}=1.1"):
            with pytest.raises(UserError, match=f"{name} must be from 0 to 1"):
                override(config_class(), [option])


def test_new_options__are_those_that_were_no_constants() -> None:
    """A config stored before augmentation had options lacks them, and its run used the values that are defaults now."""
    config = Vox2vecConfig()
    fixed = {f.name for f in dataclasses.fields(config) if f.metadata.get(FORMERLY_FIXED)}
    assert {"noise_sigma_hu", "window_low_hu", "filter_probability"} <= fixed
    stored = {name: value for name, value in to_plain(config).items() if name not in fixed}
    assert from_plain(Vox2vecConfig, stored) == config and new_options(config, stored) == []
    del stored["betas"], stored["seed"]
    assert new_options(config, stored) == ["betas=0.9,0.999", "seed=0"]
