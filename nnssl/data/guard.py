"""The one guard for images that meet a pretraining: modality, spacing, order of the axes, orientation.

It checks datasets that get the plans of others, datasets that a network is transferred to or probed on, weights and
encoders that a run starts from, and raw images that are embedded, matched or drawn.

It refuses another modality, as far as `channel_names` of both sides tell: CT against MR, MR against PET. Where a
dataset gets plans, it also refuses channels that nnU-Net normalises differently: only one of them is called CT. `allow`
turns this into a warning. Everything else is a warning: other sequences of MR, or a name that tells nothing, unless
both sides have the same one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.reader import REORIENTING

_WORDS = {
    "CT": "ct cta ctp ncct cect cbct ldct",
    "MR": "mr mri mra mrt flair adc dwi dti hbv swi dce bssfp mprage tof pd pdw stir dixon",
    "PET": "pet fdg suv psma",
    "SPECT": "spect",
    "ultrasound": "us ultrasound sonography",
    "X-ray": "xray radiograph cxr",
    "OCT": "oct",
    "photograph": "rgb rgba photo photograph dermoscopy fundus",
    "microscopy": "microscopy histology fluorescence",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_WEIGHTED = re.compile(r"t[12](?!\d)\w*")  # T1, T1w, T1ce, t2f
_SEQUENCES = ("flair", "adc", "dwi", "t1", "t2")  # in this order: T2-FLAIR is FLAIR


def modality(channel: str) -> str | None:
    """CT, MR, PET and so on; None where the name does not tell.

    A name is split at everything but letters and digits, and its words are looked up in any case: `CT` (nnU-Net's own
    rule), `CTA`, `T1`, `T2w`, `MRI`, `ADC`, `FDG-PET`. Names without such a word (`image`, `channel_0`, `noNorm`,
    `rescale_to_0_1`) and names with words of two kinds (`PET-CT`) tell nothing.
    """
    words = re.findall(r"[^\W_]+", channel.casefold().replace("x-ray", "xray"))
    kinds = {"MR" if _WEIGHTED.fullmatch(word) else _KINDS.get(word) for word in words} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def mr_sequence(channel: str) -> str | None:
    """FLAIR, ADC, DWI, T1 or T2 where the name of an MR channel says so; else None."""
    name = channel.casefold()
    return next((sequence.upper() for sequence in _SEQUENCES if sequence in name), None)


def names_of_channels(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels in order, also under the key of nnU-Net's older format; none where they are not there."""
    named = dataset_json.get("channel_names", dataset_json.get("modality"))
    return tuple(str(name) for name in named.values()) if isinstance(named, Mapping) else ()


ALLOWED = "allow_other_intensities"  # entry of plans["nnssl"]; also the flag
STOCK_WAY_OUT = (
    f"nnU-Net's reader {REORIENTING} turns NIfTI files to RAS as it reads them, and predictions back to each file's "
    f'own orientation: nnssl_plan_and_preprocess --reorient, or "overwrite_image_reader_writer": "{REORIENTING}" in '
    f"dataset.json"
)
_SAME_SPACING = 0.2  # relative difference on an axis that a network is used to from augmentation
_COARSER = 2.0  # times as long: voxels beyond that show the network little
_NAMED = 10  # cases that a sentence names at most

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Images:
    """What is known of the images of one side; unknown things are not compared.

    Args:
        name: for sentences: a dataset, a folder, "the pretraining on ...".
        channels: names in order; empty where nothing names them, None to leave them out.
        orientation: the commonest one, such as LPS, of what a network has seen.
        orientations: of images to compare with that, by their names.
        spacing: mm (z, y, x) of the plans that they are prepared with.
        axes: `transpose_forward` of these plans.
        voxels: mm (z, y, x) of the files by their names, in the axes of the pretraining's plans.
    """

    name: str
    channels: Sequence[str] | None = None
    orientation: str | None = None
    orientations: Mapping[str, str | None] = field(default_factory=dict)
    spacing: Sequence[float] | None = None
    axes: Sequence[int] | None = None
    voxels: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of_pretraining(
        cls, plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], orientation: str | None
    ) -> Images:
        """What a pretraining has seen, from the entries of its checkpoint."""
        from nnssl.networks.build import resolve_configuration  # only now: it takes torch with it

        return cls(
            f"the pretraining on {plans['dataset_name']}",
            names_of_channels(dataset_json),
            orientation,
            spacing=resolve_configuration(dict(plans), configuration)["spacing"],
            axes=plans.get("transpose_forward", [0, 1, 2]),
        )


def check_images(
    given: Images,
    own: Images,
    allow: bool = False,
    by_scheme: bool = False,
    advice: str = "",
    way: str = f"add --{ALLOWED}",
) -> list[str]:
    """Compare images with those of a pretraining, or with those whose plans they get.

    Args:
        given: of the pretraining. Its only channel serves several.
        own: what meets it.
        allow: whether other intensities are wanted (`--allow_other_intensities`).
        by_scheme: whether channels differ that nnU-Net, by its rule for names, normalises differently.
        advice: what to do about another spacing or order of axes, as the end of a sentence.
        way: what allows other intensities, for the sentence that refuses them.

    Returns:
        Warnings, in sentences.

    Raises:
        UserError: the modalities differ and are not allowed to, or the numbers of channels do not fit.
    """
    different = other_intensities(given, own, by_scheme)
    if different and not allow:
        raise UserError(f"{different}; pretrain on images of that kind, mend channel_names in dataset.json where they "
                        f"are wrong, or, if this is meant, {way}")  # fmt: skip
    warnings = [f"{different}; --{ALLOWED} lets it pass"] if different else []
    warnings += [] if different else _doubts(given, own)
    warnings += _spacing(given, own, advice)
    if given.axes is not None and own.axes is not None and list(given.axes) != list(own.axes):
        warnings.append(f"the plans of {own.name} order the axes as {list(own.axes)} (transpose_forward) and those of "
                        f"{given.name} as {list(given.axes)}, so that the network sees the anatomy "
                        f"turned{_end(advice)}")  # fmt: skip
    return warnings + _orientation(given, own)


def check_datasets(given: Images, own: Images, allow: bool = False) -> list[str]:
    """Compare a dataset with the one whose plans it gets unchanged: the numbers of channels must agree too.

    Arguments, result and errors as of `check_images`.
    """
    channels = [side.channels or () for side in (own, given)]
    if len(channels[0]) != len(channels[1]):
        raise UserError(f"{own.name} has the channels {', '.join(channels[0])} and {given.name} has "
                        f"{', '.join(channels[1])}; datasets that share plans need the same: take one with these "
                        f"channels, or run the command for each of them")  # fmt: skip
    return check_images(given, own, allow, by_scheme=True)


def warn_of_images(given: Images, own: Images, allow: bool = False, by_scheme: bool = False, advice: str = "") -> None:
    """Log the warnings of `check_images`, and raise as it does."""
    for warning in check_images(given, own, allow, by_scheme, advice):
        log.warning(warning)


def other_intensities(given: Images, own: Images, by_scheme: bool = False) -> str | None:
    """How the modalities differ, as the beginning of a sentence; None if they do not as far as is known.

    Arguments and errors as of `check_images`.
    """
    different = [phrase for a, b in _pairs(given, own) if (phrase := _two_kinds(a, b, given.name, own.name, by_scheme))]
    return f"intensities differ: {' and '.join(different)}" if different else None


def _pairs(given: Images, own: Images) -> list[tuple[str, str]]:
    """Channels that meet; none where one side is not known."""
    if not given.channels or not own.channels:
        return []
    if len(given.channels) not in (1, len(own.channels)):
        raise UserError(f"{given.name} read {len(given.channels)} channels ({', '.join(given.channels)}) and "
                        f"{own.name} has {len(own.channels)} ({', '.join(own.channels)}); only one channel can serve "
                        f"several: pretrain on images with these channels")  # fmt: skip
    times = len(own.channels) // len(given.channels)
    return list(zip([*given.channels] * times, own.channels, strict=True))


def _two_kinds(given: str, own: str, given_name: str, own_name: str, by_scheme: bool) -> str | None:
    kinds = modality(given), modality(own)
    if None not in kinds and kinds[0] != kinds[1]:
        return f"{_called(own, kinds[1])} in {own_name}, {_called(given, kinds[0])} in {given_name}"
    if by_scheme and (schemes := [_scheme(name) for name in (given, own)])[0] != schemes[1]:
        return f"nnU-Net uses {schemes[1]} for {own} in {own_name}, {schemes[0]} for {given} in {given_name}"
    return None


def _called(channel: str, kind: str | None) -> str:
    return channel if channel.casefold() == str(kind).casefold() else f"{kind} ({channel})"


def _scheme(channel: str) -> str:
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return str(get_normalization_scheme(channel).__name__)


def _doubts(given: Images, own: Images) -> list[str]:
    """Warnings about modalities that are not known, or sequences that differ."""
    if given.channels is None or own.channels is None:
        return []
    for side, other in ((own, given), (given, own)):
        if not side.channels:
            seen = f" than {', '.join(other.channels)} of {other.name}" if other.channels else ""
            return [f"the modality of {side.name} is not known (channel_names of a dataset.json beside the images or "
                    f"in the folder above would tell); with other intensities{seen} the network sees "
                    f"little"]  # fmt: skip
    warnings = []
    pairs = _pairs(given, own)
    if vague := [f"{b} of {own.name}, {a} of {given.name}" for a, b in pairs if _vague(a, b)]:
        warnings.append(f"channel_names do not tell whether the modalities are the same ({'; '.join(vague)}); with "
                        f"other intensities the network sees little")  # fmt: skip
    sequences = [(mr_sequence(a), mr_sequence(b)) for a, b in pairs if modality(a) == modality(b) == "MR"]
    if other_sequences := [f"{b} after {a}" for a, b in sequences if a and b and a != b]:
        warnings.append(f"the MR sequences of {own.name} are not those of {given.name} ({', '.join(other_sequences)}): "
                        f"contrasts differ")  # fmt: skip
    return warnings


def _vague(given: str, own: str) -> bool:
    return None in (modality(given), modality(own)) and given.casefold() != own.casefold()


def _spacing(given: Images, own: Images, advice: str) -> list[str]:
    if given.spacing is None:
        return []
    warnings = []
    if own.spacing is not None and any(
        abs(a / b - 1) > _SAME_SPACING for a, b in zip(own.spacing, given.spacing, strict=True)
    ):
        warnings.append(f"the spacing of {own.name}, {_mm(own.spacing)}, differs from that of {given.name}, "
                        f"{_mm(given.spacing)}, by more than 20 % on an axis{_end(advice)}")  # fmt: skip
    coarse = {
        name: _mm(voxels)
        for name, voxels in own.voxels.items()
        if any(a > _COARSER * b for a, b in zip(voxels, given.spacing, strict=True))
    }
    if coarse:
        warnings.append(f"{given.name} saw voxels of {_mm(given.spacing)}, and these are more than twice as long on an "
                        f"axis: {named(coarse, len(own.voxels))}; what the network sees there is interpolated: "
                        f"pretrain with a spacing nearer to theirs (nnssl_plan_and_preprocess "
                        f"-overwrite_target_spacing)")  # fmt: skip
    return warnings


def _orientation(given: Images, own: Images) -> list[str]:
    wanted = given.orientation
    differ = {name: letters for name, letters in own.orientations.items() if letters is not None and letters != wanted}
    if wanted is None or not differ:
        return []
    return [f"images are oriented differently than {given.name} ({wanted}): {named(differ, len(own.orientations))}; "
            f"nnU-Net does not reorient, and the network sees mirrored or turned anatomy. Reorient the files, "
            f"labels and test images too (SimpleITK.DICOMOrient(image, '{wanted}')), or pretrain without this "
            f"difference: {STOCK_WAY_OUT}"]  # fmt: skip


def named(cases: Mapping[str, str], total: int) -> str:
    """The first ten cases with their values, and how many of all they are."""
    shown = ", ".join(f"{case} ({what})" for case, what in list(cases.items())[:_NAMED])
    more = ", ..." if len(cases) > _NAMED else ""
    return f"{shown}{more}" + (f" ({len(cases)} of {total})" if total > 1 else "")


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"


def _end(advice: str) -> str:
    return f"; {advice}" if advice else ""
