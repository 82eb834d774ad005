"""A step of Alice's authors' code and of ours in turn, in one process: CPU time of the user, and time on the clock.

    ALICE_CODE=folder python benchmarks/alice_published.py -network nnformer -threads 2 -repeats 3

`ALICE_CODE` names a clone of the authors' code, whose `models` and `CASA` are imported, which needs timm; nothing of it
is part of this package. Theirs is one query and one key of 64 x 64 x 64 through their nnFormer, encoder and decoder,
student and teacher, with heads, alignment, losses, backward, clip, AdamW and momentum. The matching of points is in
neither step. Ours is the step of `alice_step.py`.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from alice_step import make_batch, network
from parts import in_turn, step_of, step_parser
from torch import Tensor, nn

from nnssl.methods.alice.method import Alice, AliceConfig

PATCH = (64, 64, 64)
_MOMENTUM = 0.996


def load(name: str, path: Path) -> Any:
    """A module of the authors' code."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_step(code: Path) -> Callable[[], None]:
    """The authors' step, as their `engine_pretrain.py` makes it without autocast and without the matching."""
    sys.modules["utils"] = types.SimpleNamespace(trunc_normal_=nn.init.trunc_normal_)  # type: ignore[assignment]
    heads, casas = load("heads", code / "models" / "head.py"), load("casas", code / "CASA" / "CASA_Module.py")
    former = load("former", code / "models" / "nnFormer.py")
    heads.Att_iBOTHead = heads.AliceHead  # a name that the release does not define
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    student = former.nnFormer(img_size=PATCH, input_channels=1, output_channels=1, embedding_dim=48)
    head, shared = heads.AliceHead(384, 512), heads.AliceHead(384, 512, shared_head=True)
    casa, teacher = casas.CASA(512, 2048, 8, 64, 64), copy.deepcopy(student)
    shared.load_state_dict(head.state_dict(), strict=False)
    trained = nn.ModuleList([student, head, casa])
    optimiser = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], 5e-5)
    crops = torch.rand(2, 1, *PATCH)

    def step() -> None:
        columns = (torch.rand(2, 1, 4, 4) < 0.75).float()[..., None]
        mask = F.interpolate(columns, size=PATCH)
        with torch.no_grad():
            *features, _ = teacher(crops)
            goals = shared(*features)
        *features, decoded = student(crops, mask)
        found = head(*features)
        own, other = casa(found, goals)
        loss = 5 * F.mse_loss(decoded, crops)
        loss = loss + surprise(found[0], goals[0].flip(0)) + surprise(own, other)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 3.0)
        optimiser.step()
        with torch.no_grad():
            for module, followed in ((teacher, student), (shared, head)):
                theirs = dict(followed.named_parameters())
                for name, parameter in module.named_parameters():
                    parameter.mul_(_MOMENTUM).add_(theirs[name], alpha=1 - _MOMENTUM)

    return step


def surprise(student: Tensor, goal: Tensor) -> Tensor:
    """Cross-entropy of sharpened vectors."""
    return -((goal / 0.008).softmax(-1).detach() * (student / 0.1).log_softmax(-1)).sum(-1).mean()


def our_step(kind: str) -> Callable[[], None]:
    """Our step of a query and a key."""
    config = AliceConfig(patch_size=PATCH, batch_size=1, head="dino", standardise=False)
    backbone = network(kind, PATCH)
    Alice.check(config, backbone)
    method = Alice(backbone, config)
    batch = make_batch(1, PATCH)
    return step_of(method, lambda: method.augment(batch))


def main() -> None:
    """Print every step as it ends, then the ratio of the fastest."""
    parser = step_parser(__doc__, repeats=3)
    parser.add_argument("-network", nargs="+", choices=("unet", "vit", "nnformer"), default=["nnformer"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    steps = {f"ours, {kind}": our_step(kind) for kind in given.network}
    steps["published"] = published_step(Path(os.environ["ALICE_CODE"]))
    print(f"Alice, a query and a key of 64^3, torch {torch.__version__}, {given.threads} threads")
    in_turn(steps, given.repeats, "published")


if __name__ == "__main__":
    main()
