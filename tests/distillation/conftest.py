from tests.finetuning.conftest import flare, flare_prepared

__all__ = ["flare", "flare_prepared"]
