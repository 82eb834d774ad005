from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.features import stored as aligner_module
from nnssl.features.match import Matches, distance_back, match_points
from nnssl.features.stored import EmbeddingAligner, open_embeddings, save_embeddings, voxel_of
from nnssl.features.tiles import EncodedImage, encode_image
from tests.features.encoders import averaging_encoder, projecting_encoder
from tests.volumes import add_volume, make_folder

KEY = "0a1b2c3d"
ALIGNER = EmbeddingAligner(Path("checkpoint_final.pth"), "sam", KEY)
SIZE = (24, 40, 40)
Floats = NDArray[np.float64]


def _phantom() -> Floats:
    """Structures of about four voxels that are nowhere alike."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SIZE), 1.5)
    return noise / noise.std()


def _volume(folder: VolumeFolder, case: str, image: Floats, body: NDArray[np.bool_] | None = None) -> BloscVolume:
    add_volume(folder, case, image[None], body)
    save_embeddings(folder, case, KEY, encode_image(projecting_encoder(), image[None].astype(np.float32), (16, 32, 32)))
    return folder.open(case)


def _inner(margin: int) -> NDArray[np.bool_]:
    body = np.zeros(SIZE, dtype=bool)
    body[margin:-margin, margin:-margin, margin:-margin] = True
    return body


def test_match__recovers_a_known_shift(tmp_path: Path) -> None:
    folder, image, shift = make_folder(tmp_path), _phantom(), np.array([2, 4, -4])
    query = _volume(folder, "query", image, _inner(10))  # what surrounds a point has to be there too
    key = _volume(folder, "key", np.roll(image, shift, (0, 1, 2)))
    for seed in range(30):
        match = ALIGNER.match(query, key, np.random.default_rng(seed))
        assert match.other is key and match.similarity > 0.99
        assert query.read_body(match.point, match.point + 1).all()
        # fine cells are 1, 2, 2 voxels; the match is the middle of one
        assert (np.abs(match.other_point - (match.point + shift)) <= (0, 1, 1)).all()


def test_match__recovers_a_known_deformation(tmp_path: Path) -> None:
    folder, image = make_folder(tmp_path), _phantom()
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")).astype(float)
    z, y, x = (np.pi * places[axis] / SIZE[axis] for axis in range(3))
    # a shift, and up to 1.5, 3 and 3 voxels more, smooth: key(p) = query(p + field(p))
    field = np.stack([1.5 * np.sin(y) * np.sin(x), 3 * np.sin(z) * np.sin(x), 3 * np.sin(z) * np.sin(y)])
    field += np.array([1, 4, -4])[:, None, None, None]
    query = _volume(folder, "query", image, _inner(8))
    key = _volume(folder, "key", ndimage.map_coordinates(image, places + field, order=3, mode="nearest"))
    matches = [ALIGNER.match(query, key, np.random.default_rng(seed)) for seed in range(60)]
    found = np.array([m.other_point for m in matches])
    missed = found + field[:, found[:, 0], found[:, 1], found[:, 2]].T - [m.point for m in matches]
    distance = np.linalg.norm(missed * query.spacing, axis=1)  # mm
    unaligned = np.linalg.norm([(m.point - f) * query.spacing for m, f in zip(matches, found, strict=True)], axis=1)
    assert np.median(distance) < 2, "a cell is 2 x 2 x 2 mm"
    assert (distance < 4).mean() > 0.8 and np.median(unaligned) > 2 * np.median(distance)


def test_match__draws_are_bounded_and_then_the_last_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, image = make_folder(tmp_path), _phantom()
    query, key = _volume(folder, "query", image), _volume(folder, "key", np.roll(image, 4, 1))
    drawn: list[np.ndarray] = []
    draw = query.random_body_voxel

    def recorded(rng: np.random.Generator) -> np.ndarray:
        drawn.append(draw(rng))
        return drawn[-1]

    monkeypatch.setattr(query, "random_body_voxel", recorded)
    never = EmbeddingAligner(Path(), "sam", KEY, threshold=1.01)
    match = never.match(query, key, np.random.default_rng(0))
    assert len(drawn) == 101 and np.array_equal(match.point, drawn[-1]) and match.similarity <= 1.01
    drawn.clear()
    match = ALIGNER.match(query, key, np.random.default_rng(0))
    assert len(drawn) <= 32 and match.similarity >= 0.7


def test_match__takes_the_first_that_is_good_enough_and_leads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, image = make_folder(tmp_path), _phantom()
    other = image.copy()
    other[:12] = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(12, 40, 40)), 1.5) * 10
    query, key = _volume(folder, "query", image), _volume(folder, "key", other)
    strict = EmbeddingAligner(Path(), "sam", KEY, threshold=-1.0, back_mm=2.0)
    loose = EmbeddingAligner(Path(), "sam", KEY, threshold=-1.0)
    mine, other_one = (open_embeddings(folder, case, KEY) for case in ("query", "key"))

    def back(aligner: EmbeddingAligner, seed: int) -> float:
        point = aligner.match(query, key, np.random.default_rng(seed)).point[None]
        found = match_points(mine, other_one, point)
        return float(distance_back(mine, other_one, point, found, query.spacing)[0])

    assert max(back(strict, seed) for seed in range(20)) <= 2 < max(back(loose, seed) for seed in range(20))
    sizes = []

    def counted(query: EncodedImage, key: EncodedImage, at: Floats) -> Matches:
        sizes.append(len(at))
        return match_points(query, key, at)

    monkeypatch.setattr(aligner_module, "match_points", counted)
    loose.match(query, key, np.random.default_rng(0))
    assert sizes == [32], "one search for several draws"


def test_match__is_a_function_of_the_generator_in_every_process(tmp_path: Path) -> None:
    folder, image = make_folder(tmp_path), _phantom()
    query, key = _volume(folder, "query", image), _volume(folder, "key", np.roll(image, 2, 2))
    copy = pickle.loads(pickle.dumps(ALIGNER))
    first, second = (a.match(query, key, np.random.default_rng(3)) for a in (ALIGNER, copy))
    assert np.array_equal(first.point, second.point) and np.array_equal(first.other_point, second.other_point)
    assert copy == ALIGNER and ALIGNER.identity == f"sam {KEY}"


def test_voxel_of__another_grid_over_the_same_field() -> None:
    folder_size = np.array([20, 40, 40])
    encoded = encode_image(averaging_encoder(), np.zeros((1, 10, 40, 20), dtype=np.float32), (8, 16, 16))
    assert voxel_of(np.array([4.0, 3.0, 9.5]), encoded, folder_size).tolist() == [9, 3, 20]
    assert voxel_of(np.array([9.0, 39.4, 19.0]), encoded, folder_size).tolist() == [19, 39, 39]
