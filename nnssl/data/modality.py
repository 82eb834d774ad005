"""What kind of image a channel is, by its name in `channel_names` of dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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

    A name is taken apart at everything but letters and digits, whatever its case, and its words are looked up: `CT`
    (which is nnU-Net's own rule), `CTA`, `T1`, `T2w`, `MRI`, `ADC`, `FDG-PET`. Names without such a word (`image`,
    `channel_0`, `noNorm`, `rescale_to_0_1`) and names with words of two kinds (`PET-CT`) tell nothing.
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
