from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl.data.loader import Cases, RelativePosition, SampleDataset
from nnssl.methods.base import Match, Method, MethodConfig, Sample, Volume
from tests.volumes import add_volume, make_folder


class Pairing(Method):
    """A method whose samples are matches."""

    config_class = MethodConfig
    pairs_volumes = True

    @classmethod
    def sample(cls, volume: Volume, config: MethodConfig, rng: np.random.Generator) -> Sample:
        """Which volume was drawn, and the two points."""
        match = volume.match(rng)
        return {"pair": np.array([volume.index, match.other.index]), "own": match.point, "other": match.other_point}


def _cases(root: Path, count: int, first: int = 0) -> Cases:
    folder = make_folder(root)
    for i in range(first, first + count):
        add_volume(folder, f"case_{i}", np.zeros((1, 6 + i, 8, 8)))
    return Cases.of([folder], [folder.cases()])


def test_relative_position__is_the_same_place_of_the_bodys_box(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for case, start, stop in (("a", (2, 4, 6), (12, 24, 16)), ("b", (0, 3, 1), (20, 13, 21))):
        body = np.zeros((24, 26, 22), dtype=bool)
        body[tuple(map(slice, start, stop))] = True
        add_volume(folder, case, np.zeros((1, *body.shape)), body)
    a, b = folder.open("a"), folder.open("b")
    for seed in range(20):
        match = RelativePosition().match(a, b, np.random.default_rng(seed))
        z, y, x = match.point - (2, 4, 6)
        np.testing.assert_array_equal(match.other_point, (0 + 2 * z + 1, 3 + y // 2, 1 + 2 * x + 1))
        assert match.other is b and np.isnan(match.similarity)
        assert b.read_body(match.other_point, match.other_point + 1).all()


def test_sample_dataset__partners_are_other_volumes_of_the_stream_all_equally_often(tmp_path: Path) -> None:
    train, val = _cases(tmp_path / "t", 4), _cases(tmp_path / "v", 1, 4)
    dataset = SampleDataset(Pairing, MethodConfig(batch_size=2), train, val)
    drawn = [dataset["train", step, position] for step in range(100) for position in range(2)]
    pairs = np.array([sample["pair"] for _, sample in drawn if not isinstance(sample, str)])
    assert len(pairs) == 200 and (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).reshape(4, 4)
    assert (counts + 99 * np.eye(4) >= 6).all()
    _, again = dataset["train", 7, 1]
    assert not isinstance(again, str) and np.array_equal(again["pair"], pairs[15])
    alone = {tuple(s["pair"]) for _, s in (dataset["val", i, 0] for i in range(40)) if not isinstance(s, str)}
    assert alone == {(0, i) for i in range(4)}, "a held-out volume that is alone is paired with training volumes"


def test_sample_dataset__takes_another_aligner_and_hands_it_to_workers(tmp_path: Path) -> None:
    class Corner:
        identity = "corner"

        def match(self, volume: Volume, other: Volume, rng: np.random.Generator) -> Match:
            return Match(np.zeros(3, dtype=np.int64), other, np.ones(3, dtype=np.int64), 0.9)

    cases = _cases(tmp_path, 2)
    dataset = SampleDataset(Pairing, MethodConfig(batch_size=1), cases, cases, Corner())
    _, sample = dataset["train", 0, 0]
    assert not isinstance(sample, str) and sample["other"].tolist() == [1, 1, 1]


def test_match__of_a_volume_without_a_matcher_is_refused(tmp_path: Path) -> None:
    folder = _cases(tmp_path, 1).folders[0]
    with pytest.raises(ValueError, match="matcher"):
        folder.open("case_0").match(np.random.default_rng(0))
