"""Where a point of one volume lies in another: what a method's pairs of volumes are made with.

An aligner is handed to the loader's workers and holds no state: a match is a function of the two volumes and the
generator alone, so that resumed and distributed runs see the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nnssl.data.volumes import BloscVolume
from nnssl.geometry import bounding_box
from nnssl.methods.base import Match


class Aligner(Protocol):
    """Finds a point of a volume in another one; picklable."""

    @property
    def identity(self) -> str:
        """What it is, for the checkpoint: a run goes on with the aligner that it began with."""

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Draw a point of `volume` and tell where in `other` it lies."""


@dataclass(frozen=True)
class RelativePosition:
    """The same relative position in the bounding box of the body; needs no pixel embeddings (methods.md 4.1)."""

    @property
    def identity(self) -> str:
        """There is but one."""
        return "position"

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Take a random voxel of the body; the match need not be body."""
        point = volume.random_body_voxel(rng)
        mine, theirs = (bounding_box(v.read_body(np.zeros(3, dtype=np.int64), v.size)) for v in (volume, other))
        place = (point + 0.5 - mine.start) / (mine.stop - mine.start)
        matched = np.floor(theirs.start + place * (theirs.stop - theirs.start)).astype(np.int64)
        return Match(point, other, matched)
