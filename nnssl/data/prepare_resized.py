"""Makes the resized bodies of a run's volumes, once, together with other jobs (`nnssl.data.resized`).

They have records of their own, with the hashes of the volume, the mask and the stored body: a body whose files are
others than those of its record is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nnssl.core.distributed import is_main
from nnssl.core.errors import UserError
from nnssl.core.system import gigabytes
from nnssl.data.loader import Cases, reading
from nnssl.data.preprocessing import Prepared, SharedWork, Task
from nnssl.data.raw import RawCase
from nnssl.data.raw_files import CaseFiles, digest_of
from nnssl.data.records import Record, Records, now
from nnssl.data.resized import Size, origin_of, resized_body, resized_folder
from nnssl.data.storage import body_folder, save_resized
from nnssl.data.volumes import VolumeFolder

_FORMAT = 1  # of a stored body; another one makes all anew

logger = logging.getLogger("nnssl")


def prepare_resized_bodies(runs: Sequence[Cases], largest: Size, num_processes: int) -> None:
    """Make the resized bodies that the volumes of a run lack, and say where they are and how large.

    Any number of processes may do so at once: they share the work.

    Args:
        runs: the volumes, such as those of the training and the held-out ones.
        largest: size (z, y, x) of a resized body, at most.
        num_processes: that work at once for this one.

    Raises:
        UserError: something is missing and the folder may only be read; a volume cannot be read.
        OSError: the disk is full.
    """
    found: dict[VolumeFolder, list[str]] = {}
    for cases in runs:
        for which, name in zip(cases.folder_of, cases.names, strict=True):
            found.setdefault(cases.folders[which], []).append(str(name))
    for folder, names in found.items():
        ResizedBodies(folder, largest).prepare(sorted(set(names)), num_processes)


@dataclass(frozen=True)
class ResizedBodies:
    """The resized bodies of one folder of volumes.

    Args:
        volumes: the folder.
        largest: size (z, y, x) of a body, at most.
    """

    volumes: VolumeFolder
    largest: Size

    @property
    def folder(self) -> Path:
        """For claims; the files are in `files`."""
        return resized_folder(self.volumes.images, self.largest)

    @property
    def files(self) -> Path:
        """Folder of the files and records."""
        return body_folder(self.folder)

    @property
    def settings(self) -> str:
        """Digest of what bodies are made with."""
        return digest_of([_FORMAT, list(self.largest), self.volumes.settings])

    def prepare(self, names: Sequence[str], num_processes: int) -> None:
        """Make those that are missing or out of date; arguments as of `prepare_resized_bodies`."""
        records = Records(self.folder)
        missing: list[Task] = [name for name in names if not self._is_current(name, records)]
        size = "x".join(map(str, self.largest))
        if missing and not records.may_write:
            raise UserError(f"{self.volumes.images.parent} may only be read, and {len(missing)} bodies resized to "
                            f"{size} must be written there; let nnUNet_preprocessed name a folder of your own, ask its "
                            f"owner to run the same line, or add -o body_size=none")  # fmt: skip
        if missing:
            finish = partial(_record, settings=self.settings)
            work = SharedWork(self.folder, records, self.settings, partial(make_body, bodies=self), finish,
                              title="Resizing bodies")  # fmt: skip
            for _ in work.run(missing, num_processes, is_main()):
                pass
        used = sum((self.files / f"{name}.b2nd").stat().st_size for name in names)
        logger.info("%s: bodies of %d volumes resized to at most %s, %d of them now: %s in %s", self.volumes.name,
                    len(names), size, len(missing), gigabytes(used), self.files)  # fmt: skip

    def sources(self, name: str) -> RawCase:
        """The files that tell whether a body is current: volume, mask and the body itself."""
        homes = (self.volumes.images, self.volumes.bodies, self.files)
        return RawCase(name, tuple(str(home / f"{name}.b2nd") for home in homes))

    def _is_current(self, name: str, records: Records) -> bool:
        """Whether a body was made of these files; those of which only the time differs are compared by their hash."""
        record, case = records.get(name), self.sources(name)
        if record is None or record.files is None or record.unfit(self.settings, None):
            return False
        try:
            files = CaseFiles.of(case)
            if record.files.changed(files) is None and record.files.doubtful(files):
                files = files.hashed(case, record.files)
                if records.may_write and record.files.changed(files) is None:
                    records.renew([replace(record, files=files)])
        except OSError:
            return False
        return record.files.changed(files) is None


def make_body(name: Task, bodies: ResizedBodies) -> Prepared:
    """Resize and store the body of a volume.

    Raises:
        UserError: the volume cannot be read, or half precision cannot hold its values.
        OSError: the disk is full.
    """
    assert isinstance(name, str)
    *sources, file = bodies.sources(name).images
    made_of = RawCase(name, tuple(sources))
    with reading(bodies.volumes, name):
        files = CaseFiles.of(made_of)  # before they are read, so that a later change shows
        volume = bodies.volumes.open(name)
        body = resized_body(volume, bodies.largest)
        origin = origin_of(volume, body.box)
    save_resized(bodies.folder, name, body.values, {"origin": origin})
    own = RawCase(name, (file,))
    images = (*files.hashed(made_of).images, *CaseFiles.of(own).hashed(own).images)
    return Prepared(name, files=CaseFiles(images))


def _record(made: Prepared, settings: str) -> Record:
    return Record(made.name, made.files, settings, prepared=now())
