"""What a demo has finished already, kept in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nnssl.core.json_files import read_json
from nnssl.core.own_files import DemoFile
from nnssl.errors import UserError

_FILE = "demo.json"


@dataclass(frozen=True)
class Record:
    """The record of one demo: `demo.json`, rewritten whenever a step is finished.

    Args:
        home: folder of the demo.
        settings: that the steps were run with.
        seconds: how long each step took, with what an interrupted one took before it was continued.
        finished: the steps that are.
    """

    home: Path
    settings: dict[str, str]
    seconds: dict[str, float]
    finished: list[str]

    @classmethod
    def open(cls, home: Path, settings: dict[str, str]) -> Record:
        """The record of the demo in `home`, or that of a new one.

        Raises:
            UserError: the folder holds something else, or a demo with other settings.
        """
        file = home / _FILE
        if not file.is_file():
            if home.exists() and (not home.is_dir() or any(home.iterdir())):
                raise UserError(f"{home} holds something else than a demo; choose another folder with -o")
            home.mkdir(parents=True, exist_ok=True)
            record = cls(home, settings, {}, [])
            record._save()
            return record
        content = read_json(file, DemoFile, f"delete {home}, or choose another folder with -o")
        record = cls(home, content["settings"], content["seconds"], content["finished"])
        if record.settings != settings:
            before = ", ".join(f"{key} {value}" for key, value in record.settings.items())
            raise UserError(f"{home} holds a demo with other settings ({before}); choose another folder with -o, or "
                            f"delete that one")  # fmt: skip
        return record

    def spend(self, step: str, seconds: float, anew: bool = False) -> None:
        """Note the time of a step, finished or not; `anew` if nothing is left of an earlier attempt."""
        self.seconds[step] = round(seconds + (0 if anew else self.seconds.get(step, 0)), 1)
        self._save()

    def finish(self, step: str) -> None:
        """Note that a step is finished."""
        self.finished.append(step)
        self._save()

    def _save(self) -> None:
        temporary = self.home / f"{_FILE}.writing"
        content = {"settings": self.settings, "finished": self.finished, "seconds": self.seconds}
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.home / _FILE)
