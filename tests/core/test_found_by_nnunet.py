from __future__ import annotations

import pytest

from nnssl.core.found_by_nnunet import _PLACES, Kind, _is_of_kind, why_not_found


@pytest.mark.parametrize("kind", _PLACES)
def test_nnunets_own_names_are_there(kind: Kind) -> None:
    """They are listed so that nothing is imported: the list must be true."""
    for name in _PLACES[kind].own:
        assert _is_of_kind(name, _PLACES[kind]) and why_not_found(name, kind) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("os", "reader"), ("Nobody", "reader"), ("join", "preprocessor"), ("recursive_find_python_class", "preprocessor"),
     ("np", "normalisation"), ("recursive_find_resampling_fn_by_name", "resampling function"), ("partial", "reader"),
     ("softmax_helper_dim0", "label manager"), ("abs", "resampling function"), ("a.b", "reader"), ("", "reader")],
)  # fmt: skip
def test_what_modules_hold_besides(name: str, kind: Kind) -> None:
    assert why_not_found(name, kind)
