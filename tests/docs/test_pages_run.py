"""Our commands on the pages, as they stand, on small datasets; pretrainings with a short schedule.

tests/test_readme.py runs README.md and docs/walk.md, tests/test_lapn_workflow.py the workflow of docs/lapn.md with
smaller plans, tests/test_clusters_page.py the job scripts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, commands
from tests.docs.parsers import OWN
from tests.docs.world import World

LONG = "trains for long: tests/finetuning, tests/benchmarking and tests/classification run such trainings"
ELSEWHERE = "needs weights of others: tests/interchange"
# The method of RUN, and the beginnings of the lines that are parsed only, each with its reason.
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "docs/does_it_work.md": ("vox2vec", {"nnssl_benchmark": LONG}),
    "docs/embeddings.md": ("vox2vec", {}),
    "docs/evaluation.md": ("vox2vec", {}),
    "docs/figures.md": ("vox2vec", {}),
    "docs/interchange.md": (
        "vox2vec",
        {"nnssl_import": ELSEWHERE, "nnssl_transfer": ELSEWHERE, "nnssl_embed": ELSEWHERE,
         "nnssl_export -m RUN -o OUT -format": "needs a benchmark: tests/interchange/test_model_card.py"},
    ),
    "docs/match.md": ("sam", {}),
    "docs/methods.md": ("vox2vec", {}),
    "docs/onnx.md": ("vox2vec", {}),
    "docs/probe.md": ("vox2vec", {"nnssl_pretrain -d 500 -m vox2vec -probe 17 --c": "goes on with the first run"}),
    "docs/classification.md": (
        "vox2vec",
        {"nnssl_classify -d 600 -m RUN -target covid --finetune": LONG, "nnssl_classify -d 600 -m random -p": LONG,
         "nnssl_benchmark -d 600 -target covid -m vox2vec=RUN random=random:RUN -o bench --finetune": LONG},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pages"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_page__its_commands_run(page: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.enter(monkeypatch)
    method, parsed_only = RUNS[page]
    world.names["RUN"] = _run(world, method, monkeypatch)
    if page == "docs/figures.md":
        world.names["RUN_OF_UNET_MAE"] = world.pretrained("unet_mae")
    world.names["MODEL"] = world.segmenter() if page == "docs/onnx.md" else world.classifier()
    for words in commands(PAGES[page]):
        if words[0] in OWN and not " ".join(words).startswith(tuple(parsed_only)):
            world.run(words)


def _run(world: World, method: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = world.pretrained(method)
    monkeypatch.setenv("RUN", str(run))
    return run


def test_pages__what_is_parsed_only_is_there() -> None:
    for page, (_, parsed_only) in RUNS.items():
        lines = [" ".join(words) for words in commands(PAGES[page])]
        assert all(any(line.startswith(start) for line in lines) for start in parsed_only), page
