from __future__ import annotations

import pytest

from nnssl.core.errors import UserError
from nnssl.interchange.licensing import choose_licence, licence_id, terms_of


@pytest.mark.parametrize(("name", "identifier"), [
    ("CC BY-NC 4.0", "cc-by-nc-4.0"), ("Apache (code)", "apache-2.0"), ("MIT License", "mit"),
    ("cc-by-4.0", "cc-by-4.0"),
    ("BY-NC-ND", "BY-NC-ND"), ("House rules 3", "House rules 3"),
])  # fmt: skip
def test_licence_id__of_names_that_authors_write(name: str, identifier: str) -> None:
    assert licence_id(name) == identifier


def test_terms__of_names_that_hubs_do_not_know() -> None:
    assert terms_of("cc-by-nc-sa-4.0") == {"by", "nc", "sa"}
    assert all("nc" in terms_of(name) for name in ("CC_BY_NC", "No commercial use", "for research use only"))
    assert {"nc", "nd"} <= terms_of("BY-NC-ND") and {"nc", "nd"} <= terms_of("Non-commercial, no derivatives")
    assert not terms_of("mit") & {"nc", "nd", "sa"}


@pytest.mark.parametrize(("asked", "inherited", "derived", "chosen"), [
    (None, None, False, None),
    ("Apache 2.0", None, False, "apache-2.0"),
    (None, "CC BY 4.0", True, "cc-by-4.0"),
    ("cc-by-nc-4.0", "CC BY 4.0", True, "cc-by-nc-4.0"),  # stricter
    ("apache-2.0", "mit", False, "apache-2.0"),
    ("cc0-1.0", "mit", False, None),  # leaves out the credit
    ("mit", "CC BY-NC 4.0", True, None),
    ("cc-by-nc-sa-4.0", "CC BY-SA 4.0", True, None),  # not the same
    ("cc-by-sa-4.0", "CC BY-SA 4.0", True, "cc-by-sa-4.0"),
    (None, "CC BY-NC-ND 4.0", False, "cc-by-nc-nd-4.0"),  # another form of the same weights
    (None, "CC BY-NC-ND 4.0", True, None),
    ("mit", "House rules", True, None),
    ("house rules; drop table", None, False, None),
])  # fmt: skip
def test_choose_licence(asked: str | None, inherited: str | None, derived: bool, chosen: str | None) -> None:
    origin = {"title": "theirs", "licence": inherited, "derived": derived} if inherited else None
    if chosen is None and (asked or inherited):
        with pytest.raises(UserError, match=r"theirs|takes an identifier"):
            choose_licence(asked, origin, "RUN")
    else:
        assert choose_licence(asked, origin, "RUN") == chosen
