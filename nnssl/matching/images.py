"""Raw images, preprocessed by nnU-Net as those that an encoder was pretrained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.body_mask import body_mask_ct
from nnssl.data.check_case import load_case
from nnssl.data.preprocessing import check_size_at, mask_onto_grid
from nnssl.data.quiet import quietly
from nnssl.data.raw import RawCase, first_ct_channel
from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.errors import BadCase, UserError
from nnssl.matching.geometry import ImageGeometry, image_geometry
from nnssl.networks.build import resolve_configuration


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image.

    Args:
        name: of the case, for titles and messages.
        values: (C, Z, Y, X) float32, the plans' normalised values.
        geometry: where its voxels lie.
        orientation: where the axes of the array that was read point, such as LPS; None where that is unknown.
        body: (Z, Y, X) bool, for CT what air from outside does not reach, else where the raw image is not zero; None
            unless asked for.
    """

    name: str
    values: np.ndarray
    geometry: ImageGeometry
    orientation: str | None = None
    body: np.ndarray | None = None


def channel_files(image: str | Path, num_channels: int, file_ending: str) -> tuple[str, ...]:
    """Files of an image in nnU-Net's raw format.

    Args:
        image: the file of any of its channels, such as `imagesTr/case_0000.nii.gz`; or one file with all channels; or
            the case, such as `imagesTr/case`.
        num_channels: how many there have to be.
        file_ending: of the files of a case.

    Raises:
        UserError: there are no such files.
    """
    path = Path(image)
    match = re.fullmatch(r"(.+)_\d{4}(\..+)", path.name)
    if path.is_file():
        if num_channels == 1 or match is None:
            return (str(path),)
        files = [path.with_name(f"{match[1]}_{channel:04d}{match[2]}") for channel in range(num_channels)]
        missing = [file for file in files if not file.is_file()]
        if len(missing) == num_channels - 1:  # one file may hold all channels as a fourth axis
            return (str(path),)
    else:
        files = [Path(f"{path}_{channel:04d}{file_ending}") for channel in range(num_channels)]
        missing = [file for file in files if not file.is_file()]
        if len(missing) == num_channels:
            raise UserError(f"there is no image {path}; give a file such as case_0000{file_ending}, or the case as in "
                            f"imagesTr/case, whose channels are case_0000{file_ending} and so on")  # fmt: skip
    if missing:
        raise UserError(f"the image {image} has to have {num_channels} channels, and {missing[0]} is missing")
    return tuple(map(str, files))


def prepare_image(
    image: str | Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool = False
) -> PreparedImage:
    """Read an image and preprocess it by nnU-Net's own code.

    Args:
        image: see `channel_files`.
        plans: nnU-Net's.
        configuration: of the plans.
        dataset_json: of the dataset that the plans are for.
        with_body: whether to make the mask of the body too.

    Raises:
        UserError: the image is missing or cannot be used.
    """
    channels = len(resolve_configuration(plans, configuration)["normalization_schemes"])
    files = channel_files(image, channels, dataset_json["file_ending"])
    name = re.sub(r"(_\d{4})?\..*$", "", Path(files[0]).name)
    try:
        return prepare_raw_case(RawCase(name, files), plans, configuration, dataset_json, with_body)
    except BadCase as bad:
        raise UserError(f"the image {image} cannot be used: {bad}") from bad


def prepare_raw_case(
    case: RawCase, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool = False
) -> PreparedImage:
    """As `prepare_image`, of files that are known; with the mask of the body, if asked for.

    Raises:
        BadCase: the image cannot be used.
        UserError: the plans name what nnU-Net must not call.
    """
    try:
        return _prepare(case, plans, configuration, dataset_json, with_body)
    except MemoryError as error:  # one image at a time: it is this one's size
        raise BadCase(f"not enough memory to prepare it ({error}); use a machine with more") from error


def _prepare(
    case: RawCase, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool
) -> PreparedImage:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    refuse_untrusted_names(plans, resolved.configuration)
    schemes = resolved.normalization_schemes
    ct_channel = first_ct_channel(schemes)
    loaded = load_case(case, manager.image_reader_writer_class, len(schemes), ct_channel)
    check_size_at(loaded, manager.transpose_forward, resolved.spacing)
    body = None
    if with_body and ct_channel is not None:  # before nnU-Net clips the values
        body = body_mask_ct(loaded.image[ct_channel].transpose(manager.transpose_forward))
    with quietly():
        values, seg, properties = resolved.preprocessor_class(verbose=False).run_case_npy(
            loaded.image, None, loaded.properties, manager, resolved, dataset_json
        )
        if body is not None:
            body = mask_onto_grid(body, values.shape[1:], properties, manager.transpose_forward, resolved)
        elif with_body:
            body = seg[0] >= 0  # nnU-Net writes -1 outside the nonzero mask
    geometry = image_geometry(properties, manager.transpose_forward, values.shape[1:], case.images[0])
    values = values.astype(np.float32, copy=False)
    return PreparedImage(case.name, values, geometry, loaded.orientation, body)
