"""The callback that draws composed retrievals; tests/hardneg/test_cir_recipes.py runs it."""

from __future__ import annotations

import pytest

from hardneg.callbacks import DrawRetrievals


@pytest.mark.parametrize("options", [{"queries": 0}, {"found": 0}])
def test_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wants at least 1 of each"):
        DrawRetrievals(**options)
