"""What the pretraining gained over random weights, scan by scan, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import SummaryFile
from nnssl.demo.anatomy import LABELS

AGAIN = "delete the demo's folder and run the demo again"
_LEAST = 0.02  # of a gain: two trainings from random weights differ by about as much
_MOST_SCANS = 5 / 6  # of the test scans must be ahead
CaseDice = Mapping[str, Mapping[str, float]]


def case_dice(summary: Path) -> CaseDice:
    """Read the Dice of every test scan, organ by organ, from a summary.json of nnU-Net.

    Raises:
        UserError: the evaluation is missing, or lacks an organ.
    """
    dice = {}
    for case in read_json(summary, SummaryFile, AGAIN)["metric_per_case"]:
        metrics = case["metrics"]
        if missing := [organ for organ, label in LABELS.items() if "Dice" not in metrics.get(str(label), {})]:
            raise UserError(f"{summary} has no Dice of {', '.join(missing)}; {AGAIN}")
        name = Path(case["prediction_file"]).name.split(".")[0]
        dice[name] = {organ: float(metrics[str(label)]["Dice"]) for organ, label in LABELS.items()}
    return dice


def text(values: Sequence[float], sign: str = "") -> str:
    """Mean of the seeds' Dice, with the standard deviation where there are several: `.61 ± .02`, `+.39`."""
    numbers = [f"{mean(values):{sign}.2f}", *([f"{stdev(values):.2f}"] if len(values) > 1 else [])]
    return " ± ".join(number.replace("0.", ".", 1) for number in numbers)


@dataclass(frozen=True)
class Gain:
    """Dice with pretrained and with random weights on the same test scans.

    Args:
        method: of the pretraining.
        labelled: number of scans that both trainings learned from.
        pretrained: Dice by scan and organ, of every seed.
        random: the same with random weights, in the same order of seeds.
    """

    method: str
    labelled: int
    pretrained: Sequence[CaseDice]
    random: Sequence[CaseDice]

    @property
    def leads(self) -> list[float]:
        """Mean Dice with pretrained weights minus that with random ones, of every seed."""
        return [a - b for a, b in zip(by_seed(self.pretrained), by_seed(self.random), strict=True)]

    @property
    def ahead(self) -> tuple[int, int]:
        """On how many test scans of all seeds the pretrained weights are ahead, and the number of these scans."""
        pairs = [
            mean(a[scan].values()) > mean(b[scan].values())
            for a, b in zip(self.pretrained, self.random, strict=True)
            for scan in a
        ]
        return sum(pairs), len(pairs)

    @property
    def is_shown(self) -> bool:
        """Whether there is a gain: .02 or more in mean, in every seed, and on five of six test scans."""
        ahead, scans = self.ahead
        return mean(self.leads) >= _LEAST and min(self.leads) > 0 and ahead >= _MOST_SCANS * scans

    @property
    def title(self) -> str:
        """The gain in a few words."""
        lead, both = text(self.leads, "+"), (text(by_seed(dice)) for dice in (self.pretrained, self.random))
        what = f"gains {lead} mean Dice" if self.is_shown else f"shows no gain in this size, {lead} mean Dice"
        return "{}: {} against {} from random weights".format(f"{self.method} {what}", *both)

    @property
    def sentence(self) -> str:
        """The gain, or that there is none, with both numbers."""
        ahead, pairs = self.ahead
        scans = len(self.pretrained[0])
        seeds = f" in {len(self.leads)} seeds" if len(self.leads) > 1 else ""
        numbers = (f"ith {self.labelled} labelled scans the network pretrained with {self.method} reaches a mean Dice "
                   f"of {text(by_seed(self.pretrained))}, random weights {text(by_seed(self.random))}: "
                   f"{text(self.leads, '+')} on {scans} test scans{seeds}, ahead on {ahead} of {pairs}.")  # fmt: skip
        return f"W{numbers}" if self.is_shown else f"No gain in this size: w{numbers}"


def by_seed(dice: Sequence[CaseDice]) -> list[float]:
    """Mean Dice over scans and organs, of every seed."""
    return [mean(mean(organs.values()) for organs in scans.values()) for scans in dice]
