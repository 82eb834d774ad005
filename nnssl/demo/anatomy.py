"""The reference patient: trunk, skeleton and organs as shapes in mm, painted with one patient's variations.

x points to the patient's left, y to the back, z to the head; (0, 0, 0) is in the middle of the body at the iliac crest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnssl.demo.patient import Field, Grid, Mask, Patient

LABELS = {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "stomach": 5, "aorta": 6}

_WALL = 17.0  # mm, muscle and ribs around the cavity
_VERTEBRA = 31.0  # mm from one to the next
_RIB = 27.0


@dataclass
class Canvas:
    """HU and labels of a painting in progress: later shapes cover earlier ones.

    Args:
        grid: coordinates of the voxels in the reference patient.
        patient: the variations to paint.
        hu: (Z, Y, X) in HU.
        labels: (Z, Y, X), as in `LABELS`.
        depth: mm from the outside of the muscle wall inwards, negative in the fat around it.
        dome: z of the diaphragm above or below every voxel.
        filaments: field that is near 0 along thin branching curves, for vessels.
    """

    grid: Grid
    patient: Patient
    hu: Field
    labels: NDArray[np.uint8]
    depth: Field
    dome: Field
    filaments: Field

    def paint(self, where: Mask, tissue: str, label: str | None = None) -> None:
        """Cover voxels with a tissue, and replace their labels."""
        self.hu[where] = self.patient.hu[tissue]
        self.labels[where] = LABELS[label] if label else 0

    def organ(self, name: str, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
        """Ellipsoid of an organ of this patient."""
        p = self.patient
        return self.grid.ellipsoid(np.asarray(centre) + p.shift[name], np.asarray(radii) * p.size[name])


def paint_patient(grid: Grid, patient: Patient, filaments: Field) -> tuple[Field, NDArray[np.uint8]]:
    """HU, sharp and without noise, and labels of one patient."""
    canvas = Canvas(
        grid,
        patient,
        hu=np.full(grid.z.shape, -1000, np.float32),
        labels=np.zeros(grid.z.shape, np.uint8),
        depth=_depth_below_wall(grid),
        dome=_diaphragm(grid, patient),
        filaments=filaments,
    )
    for part in (_trunk, _lungs, _gut, _heart, _spleen, _stomach, _liver, _kidneys, _vessels, _spine, _ribs):
        part(canvas)
    return canvas.hu, canvas.labels


def _depth_below_wall(grid: Grid) -> Field:
    waist = np.exp(-(((grid.z - 90) / 70) ** 2))
    shoulders = 1 - 0.25 * ((grid.z - 330).clip(0, None) / 80) ** 2
    half_width = (150 - 10 * waist) * shoulders.clip(0.5, 1)
    half_depth = 103 - 8 * waist
    y = grid.y - 6
    radius = (np.abs(grid.x / half_width) ** 2.5 + np.abs(y / half_depth) ** 2.5) ** (1 / 2.5)
    return np.asarray((1 / radius.clip(1e-3, None) - 1) * np.hypot(grid.x, y), np.float32)


def _diaphragm(grid: Grid, patient: Patient) -> Field:
    y = (grid.y + 8) / 85
    right = np.exp(-(((grid.x + 68) / 72) ** 2) - y**2)
    left = np.exp(-(((grid.x - 72) / 68) ** 2) - y**2)
    return np.asarray(148 + 82 * right + 66 * left + patient.shift["lungs"][0], np.float32)


def _trunk(c: Canvas) -> None:
    g, fat = c.grid, c.patient.fat
    # thicker at the flanks and the back than over the breastbone
    thickness = fat * (0.75 + 0.35 * (np.abs(g.x) / 150).clip(0, 1) ** 2 + 0.25 * (g.y / 100).clip(0, 1))
    below_skin = c.depth + thickness  # skin is thinner than a voxel: paint its share, for a smooth outline
    c.hu += (c.patient.hu["skin"] + 1000) * ((below_skin + 5) / 4).clip(0, 1)
    c.hu += (c.patient.hu["fat"] - c.patient.hu["skin"]) * ((below_skin + 2) / 4).clip(0, 1)
    c.paint((c.depth > 0) & (c.depth < _WALL), "muscle")
    chest = (g.z > 215) & (g.y < -20) & (np.abs(np.abs(g.x) - 65) < 45)
    c.paint(chest & (c.depth > -10) & (c.depth < 4), "muscle")
    for side in (-1, 1):
        c.paint((g.ellipsoid((0, 82, side * 33), (np.inf, 20, 26)) < 1) & (c.depth > 2), "muscle")
        psoas = 12 + 10 * ((150 - g.z) / 150).clip(0, 1)
        c.paint((((g.y - 52) / psoas / 1.2) ** 2 + ((g.x - side * 38) / psoas) ** 2 < 1) & (g.z < 150), "muscle")


def _lungs(c: Canvas) -> None:
    g = c.grid
    mediastinum = 20 + 10 * np.exp(-(((g.z - 250) / 50) ** 2)) + 10 * np.exp(-(((g.y - 50) / 25) ** 2))
    apex = g.z < 385 - 0.006 * g.x**2
    lungs = (c.depth > _WALL - 3) & (g.z > c.dome) & (np.abs(g.x) > mediastinum) & apex
    c.paint((c.depth > _WALL - 6) & (g.z > c.dome - 5) & (g.z <= c.dome), "muscle")  # the diaphragm itself
    c.paint(lungs, "lung")
    near_hilum = np.exp(-(np.sqrt((np.abs(g.x) - 40) ** 2 + (g.y - 5) ** 2 + (g.z - 265) ** 2) / 45))
    c.hu[lungs & (c.filaments < 0.13 + 0.6 * near_hilum)] = 0.6 * c.patient.hu["vein"]
    c.hu[lungs] += (40 * (g.y / 100))[lungs]  # blood sinks to the back of a lying patient
    c.paint((g.ellipsoid((0, 2, 0), (np.inf, 9, 9)) < 1) & (g.z > 325), "gas")


def _heart(c: Canvas) -> None:
    heart = c.organ("heart", (246, -28, 22), (48, 44, 58))
    c.paint(heart < 1.25, "fat")
    c.paint(heart < 1, "myocardium")
    chambers = [((240, -12, 40), (32, 22, 24)), ((238, -44, 8), (34, 18, 30)), ((268, 2, 0), (18, 16, 34))]
    for centre, radii in chambers:
        c.paint((c.organ("heart", centre, radii) < 1) & (heart < 0.85), "heart")


def _gut(c: Canvas) -> None:
    g = c.grid
    colon = [
        [(-40, 25, -98), (60, 12, -102), (92, -30, -88), (78, -66, -40), (70, -72, 20), (104, -50, 80), (150, -8, 108)],
        [(150, -8, 108), (110, 25, 110), (0, 28, 104), (-60, 15, 95)],
    ]
    x, y = g.x + 10 * np.sin(g.y / 16 + g.z / 27), g.y + 10 * np.sin(g.x / 18 - g.z / 21)
    loops = np.sin(x / 11) * np.sin(y / 12) * np.sin(g.z / 13 + x / 30)
    middle = g.ellipsoid((15, -28, 4), (72, 48, 82)) < 1
    c.paint(middle & (np.abs(loops) > 0.12), "gut_wall")
    c.paint(middle & (np.abs(loops) > 0.3), "bowel")
    for points in colon:
        distance = g.tube(points)
        haustra = 18 + 3 * np.sin((g.z + g.x + g.y) / 7)
        inside = c.depth > _WALL
        c.paint((distance < haustra) & inside, "gut_wall")
        c.paint((distance < haustra - 4) & inside, "stool")
        c.paint((distance < haustra - 4) & inside & (c.filaments < 0.45), "gas")
    pancreas = g.tube([(118, 0, -28), (132, -12, 0), (148, 2, 35), (165, 22, 72)])
    c.paint(pancreas < 11 + 2 * np.sin(g.x / 5), "pancreas")


def _spleen(c: Canvas) -> None:
    g = c.grid
    tilted = g.z - 0.5 * (g.y - 40)
    spleen = Grid(tilted, g.y, g.x).ellipsoid(
        np.asarray((180, 42, 98)) + c.patient.shift["spleen"], np.asarray((46, 46, 30)) * c.patient.size["spleen"]
    )
    c.paint((spleen < 1) & (c.depth > _WALL + 1) & (g.z < c.dome - 6), "spleen", "spleen")


def _stomach(c: Canvas) -> None:
    g = c.grid
    below = (c.depth > _WALL) & (g.z < c.dome - 6)
    fundus = c.organ("stomach", (190, 0, 58), (40, 38, 38))
    body = c.organ("stomach", (150, -42, 42), (34, 26, 48))
    stomach = np.minimum(fundus, body)
    c.paint((stomach < 1) & below & (c.labels != LABELS["spleen"]), "gut_wall", "stomach")
    lumen = (stomach < 0.72) & (c.labels == LABELS["stomach"])
    c.paint(lumen, "stomach", "stomach")
    level = -48 + c.patient.shift["stomach"][1]  # a patient lying on the back has the gas in front
    c.paint(lumen & (g.y < level), "gas", "stomach")


def _liver(c: Canvas) -> None:
    g = c.grid
    right = c.organ("liver", (160, 0, -72), (82, 84, 74))
    left = c.organ("left_lobe", (192, -42, 8), (34, 36, 62))
    below = (c.depth > _WALL + 1) & (g.z < c.dome - 6)
    liver = (np.minimum(right, left) < 1) & below & (g.ellipsoid((0, 62, 0), (np.inf, 34, 34)) > 1)
    c.paint(liver, "liver", "liver")
    c.hu[liver & (c.filaments < 0.16)] = c.patient.hu["vein"]
    gallbladder = c.organ("gallbladder", (118, -42, -48), (24, 15, 14))
    c.paint((gallbladder < 1) & (c.depth > _WALL + 1), "bile")


def _kidneys(c: Canvas) -> None:
    for name, centre in (("right_kidney", (112.0, 48.0, -62.0)), ("left_kidney", (124.0, 46.0, 62.0))):
        kidney = c.organ(name, centre, (54, 27, 27))
        side = np.sign(centre[2])
        c.paint((kidney < 1.22) & (c.depth > _WALL), "fat")
        c.paint(kidney < 1, "kidney", name)
        pyramids = (kidney < 0.5) & (np.sin(c.grid.z / 4.5) > -0.5)
        c.paint(pyramids, "medulla", name)
        sinus = (centre[0], centre[1] - 4, centre[2] - side * 13)
        c.paint(c.organ(name, sinus, (22, 9, 15)) < 1, "fat")


def _vessels(c: Canvas) -> None:
    g, shift = c.grid, c.patient.shift["aorta"] * (0.0, 0.5, 0.7)
    calibre = float(c.patient.size["aorta"].mean())
    cava = [(-60, 32, -16), (140, 28, -18), (205, 14, -22), (232, -2, -20)]
    c.paint(g.tube(np.asarray(cava) + shift) < 11 * calibre, "vein")
    c.paint(g.tube(np.asarray([(120, 30, -18), (112, 42, -48)]) + shift) < 5.5, "vein")
    c.paint(g.tube(np.asarray([(128, 22, -16), (124, 40, 48)]) + shift) < 5.5, "vein")
    aorta = [(-60, 30, 8), (120, 28, 10), (200, 32, 16), (320, 34, 22), (338, 18, 14), (334, -8, -4), (270, -18, -12)]
    c.paint(g.tube(np.asarray(aorta) + shift) < 11.5 * calibre, "aorta", "aorta")


def _spine(c: Canvas) -> None:
    g = c.grid
    phase = (g.z + c.patient.shift["spine"][0] * 2) % _VERTEBRA
    body = g.ellipsoid((0, 62, 0), (np.inf, 17, 21))
    vertebra = phase < 24
    c.paint((body < 1), "disc")
    c.paint((body < 1) & vertebra, "cortex")
    c.paint((body < 0.68) & (phase > 3) & (phase < 21), "marrow")
    canal = g.ellipsoid((0, 86, 0), (np.inf, 9, 11))
    c.paint((canal < 2.4) & vertebra & (phase < 16), "rib")
    spinous = (np.abs(g.x) < 4.5) & (g.y > 92) & (g.y < 112) & (phase < 15)
    transverse = (np.abs(g.x) < 42) & (np.abs(g.y - 80) < 5) & (phase < 9)
    c.paint((spinous | transverse) & (c.depth > 2), "rib")
    c.paint(canal < 1, "cord")


def _ribs(c: Canvas) -> None:
    g = c.grid
    falling = g.z + 0.55 * (85 - g.y) + c.patient.shift["spine"][0]  # a rib falls on its way to the front
    shell = (c.depth > 4) & (c.depth < 13.5) & (g.z > 95 + 0.5 * (85 - g.y))
    rib = shell & (falling % _RIB < 10) & (np.abs(g.x) > 14)
    c.paint(rib, "rib")
    c.paint(rib & (g.y < -58) & (np.abs(g.x) < 75), "cartilage")
    c.paint((np.abs(g.x) < 17) & (g.y < 0) & (c.depth > 3) & (c.depth < 14) & (g.z > 225), "marrow")
    crest = (c.depth > 6) & (c.depth < 15) & (g.y > 5) & (np.abs(g.x) > 50) & (g.z < 4 - 0.004 * (g.y - 45) ** 2)
    c.paint(crest, "rib")
