"""nnssl: self-supervised pretraining on nnU-Net folders, used by nnU-Net's own training and prediction commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnssl.data.plan_and_preprocess import plan_and_preprocess
    from nnssl.finetuning.transfer_plans import transfer
    from nnssl.installation import check_installation
    from nnssl.pretraining.pretrain import pretrain

__version__ = "0.1.0"
__all__ = ["__version__", "check_installation", "plan_and_preprocess", "pretrain", "transfer"]

_WHERE = {
    "check_installation": "nnssl.installation",
    "plan_and_preprocess": "nnssl.data.plan_and_preprocess",
    "pretrain": "nnssl.pretraining.pretrain",
    "transfer": "nnssl.finetuning.transfer_plans",
}


def __getattr__(name: str) -> Any:
    # torch and nnU-Net take seconds to import: `--help` must not wait for them
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute {name!r}")
