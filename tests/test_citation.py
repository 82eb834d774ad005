"""What CITATION.cff asks to cite is what methods and model cards ask to cite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nnssl.core import VERSION
from nnssl.interchange.facts import NNUNET
from nnssl.methods.registry import get_method

FILE = yaml.safe_load((Path(__file__).parent.parent / "CITATION.cff").read_text())
PAPERS = {
    "vox2vec": "vox2vec: A Framework for Self-supervised Contrastive Learning of Voxel-Level Representations in "
    "Medical Images",
    "voco": "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis",
    "pimpic": "PiMPiC: An Overlap-Aware Contrastive Learning Framework for 3D Patch-Based Medical Image Segmentation",
    "alice": "Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D Medical Image "
    "Segmentation",
    "sam": "SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in Radiological Images",
    "lapn": "Unsupervised Representation Learning of Medical Images for Downstream Segmentation",
}


def test_citation__is_of_this_version_and_names_every_paper() -> None:
    assert FILE["cff-version"] == "1.2.0" and FILE["version"] == VERSION
    assert {"message", "title", "authors", "license"} <= FILE.keys()
    titles = [reference["title"] for reference in FILE["references"]]
    assert sorted(titles[1:]) == sorted(PAPERS.values()) and titles[0].startswith("nnU-Net: a self-configuring method")


@pytest.mark.parametrize("name", ["nnunet", *PAPERS])
def test_citation__agrees_with_the_method(name: str) -> None:
    cited = NNUNET if name == "nnunet" else get_method(name).paper
    reference: dict[str, Any] = next(each for each in FILE["references"] if f"{each['title']}." in cited)
    authors = reference["authors"]
    surnames = [author["family-names"] for author in authors if "family-names" in author]
    named = cited.partition(f" ({reference['year']}).")[0]
    assert [part.strip(" &").partition(",")[0] for part in named.split("., ") if "et al" not in part] == surnames
    assert ("et al." in named) == (authors[-1] == {"name": "and others"})
