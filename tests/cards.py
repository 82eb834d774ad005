"""What tests need to pretend a card."""

from __future__ import annotations

import pytest

from nnssl.core.pretended_backward import supports_rehearsal

pretends_a_card = pytest.mark.skipif(not supports_rehearsal(), reason="this torch cannot rehearse a step")
