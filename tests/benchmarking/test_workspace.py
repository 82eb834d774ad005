from __future__ import annotations

from pathlib import Path

from nnssl.benchmarking.workspace import Source
from nnssl.data.unused import write_withdrawn


class _Source(Source):
    @property
    def data_folders(self) -> list[Path]:
        return [self.folder / "data"]


def test_Source__cases_that_were_withdrawn_are_no_part_of_a_benchmark(tmp_path: Path) -> None:
    for folder, end in (("data", ".b2nd"), ("data", "_seg.b2nd"), ("data", ".pkl"), ("gt_segmentations", ".nii.gz")):
        (tmp_path / folder).mkdir(exist_ok=True)
        for case in "abc":
            (tmp_path / folder / f"{case}{end}").touch()
    source = _Source(tmp_path, {"file_ending": ".nii.gz"}, {}, "3d_fullres")
    assert source.labelled() == ["a", "b", "c"]
    write_withdrawn(tmp_path, {"b"})
    assert source.labelled() == ["a", "c"]
