from __future__ import annotations

from collections.abc import Callable

import pytest

import nnssl
from nnssl.cli.doctor import main
from nnssl.installation import Check, check_installation

FINE = Check("python", "ok", "3.11")
ODD = Check("disk", "warn", "little room", "make room")
WRONG = Check("nnUNet_raw", "fail", "is not set", "export nnUNet_raw=/x")


def _found(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def stand_in(report: Callable[[Check], None]) -> list[Check]:
        for check in checks:
            report(check)
        return list(checks)

    monkeypatch.setattr("nnssl.installation.check_installation", stand_in)


def test_main__a_line_each_and_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _found(monkeypatch, FINE, ODD, WRONG)
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    python: 3.11",
        "warn  disk: little room",
        "      type: make room",
        "fail  nnUNet_raw: is not set",
        "      type: export nnUNet_raw=/x",
        "1 failed, 1 to look at, 1 in order",
    ]


def test_main__nothing_failed_is_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _found(monkeypatch, FINE, ODD)
    main([])
    assert capsys.readouterr().out.endswith("0 failed, 1 to look at, 1 in order\n")


def test_main__is_one_call_of_the_public_function() -> None:
    assert nnssl.check_installation is check_installation


def test_check_installation__reports_what_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    # the search itself: tests/installation/test_trainers.py and, with all of nnU-Net, tests/test_installation.py
    monkeypatch.setattr("nnssl.installation.check_trainers", lambda: iter([FINE]))
    reported: list[Check] = []
    checks = check_installation(reported.append)
    assert checks == reported == check_installation()
    found = {check.name: check.status for check in checks}
    assert found.keys() >= {"python", "nnssl", "nnunetv2", "torch", "other nnssl", "device"}
    assert found["nnUNet_raw"] == found["nnUNet_preprocessed"] == found["nnUNet_results"] == "fail"  # not set in tests
    assert all((check.fix is None) == (check.status == "ok") for check in checks)
