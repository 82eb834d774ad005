"""Names that leave their folder, on every way into every command; `test_bad_input` sees that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnssl.data.raw import read_unlabelled
from nnssl.finetuning.base_trainer import refuse_bad_files
from nnssl.pretraining.probe_data import check_probe
from tests.bad_inputs.json_files import BENCHMARK, LABELLED, changed, raw, source_run, write
from tests.bad_inputs.rows import Row, command, function
from tests.pretrainings import CT_JSON, tiny_plans

VICTIM = "victim"  # a folder of the row's that nothing may touch
ESCAPES = ("../x", "../../x", "../../../victim", "a/b", "", ".", "..", ".hidden", "a\\b", "x" * 250, "ABSOLUTE")
_RUN = "{}/res/Dataset500_Source/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all"


def victim(folder: Path) -> None:
    """What would be lost."""
    write(folder / VICTIM / "precious.txt", "precious")
    write(folder / "pre" / "Dataset999_Other" / "precious.txt", "precious")


def escape(name: str, folder: Path) -> str:
    """The name itself, or the full path of the victim."""
    return str(folder / VICTIM) if name == "ABSOLUTE" else name


def _cases(name: str, labels: dict[str, Any] = CT_JSON) -> Any:
    """Makes a dataset whose file lists a case of that name."""

    def make(folder: Path) -> None:
        victim(folder)
        source_run(folder)
        files = {"images": ["imagesTr/case_1_0000.nii.gz"]}
        raw(folder, {**labels, "dataset": {"good": files, escape(name, folder): files}}, "Dataset017_Target")
        raw(folder)

    return make


def _case_rows() -> Iterator[Row]:
    for number, name in enumerate((*ESCAPES, "x_seg")):
        run = command("plan_and_preprocess", "-d", "17", "-p", "nnsslPlans_tiny", "-np", "1")
        yield Row(f"case name {number}: {name[:20]!r}", _cases(name), run, ("dataset.json", "dataset."), 1)
    for label, run in {
        "pretrain": command("pretrain", "-d", "17", "-m", "mae", "-p", "nnsslPlans_tiny", "-device", "cpu"),
        "transfer": command("transfer", "-s", "500", "-t", "17"),
        "annotated_labels": command("annotated_labels", "propose", "-d", "17", "--write"),
        "embed": command("embed", "-m", _RUN, "-i", "17", "-o", "{}/o", "-device", "cpu"),
        "probe": function(lambda _: check_probe("17", "500", None)),
    }.items():
        yield Row(f"case name, {label}", _cases("../../../victim", LABELLED), run, ("dataset.'../../../victim'",), 1)


def _listed_rows() -> Iterator[Row]:
    """Names of files: the folder is listed, and what has no name is left out or refused."""

    def make(folder: Path) -> None:
        raw(folder)
        source_run(folder)
        for home in ("imagesUn", "imagesTs"):
            for name in ("._case_1", "x\\y"):
                write(folder / "raw" / "Dataset500_Source" / home / f"{name}_0000.nii.gz", "")

    def left_out(folder: Path) -> object:
        return read_unlabelled(folder / "raw" / "Dataset500_Source", CT_JSON)[1]

    yield Row("file names, imagesUn", make, function(left_out), ("._case_1", "begins with a dot", "separator"), 0,
              "those files are left out, with the reason")  # fmt: skip
    images = "{}/raw/Dataset500_Source/imagesTs"
    for name, run in {
        "embed": command("embed", "-m", _RUN, "-i", images, "-o", "{}/o", "-device", "cpu"),
        "embed, one": command("embed", "-m", _RUN, "-i", f"{images}/._case_1_0000.nii.gz", "-o", "{}/o", "-device",
                              "cpu"),
    }.items():  # fmt: skip
        yield Row(f"file names, {name}", make, run, ("cannot be the name",), 1)


_PATHS = {"../victim", "Dataset500_../../x", "."}  # of runs, in -s of nnssl_transfer


def _flag_rows() -> Iterator[Row]:
    def make(folder: Path) -> None:
        victim(folder)
        source_run(folder)
        raw(folder)
        raw(folder, LABELLED, "Dataset017_Target")
        for name in ("nnUNetPlans", "nnsslPlans_tiny"):
            write(folder / "pre" / "Dataset500_Source" / f"{name}.json", tiny_plans(name))
        write(folder / "pre" / "Dataset500_Source" / "dataset.json", LABELLED)

    overwriting = ("-np", "1", "--overwrite_plans", "-overwrite_plans_name")
    for name in ("dataset", "splits_final", "dataset_fingerprint", "plans", "x_left_out", "a__b", "../x", "/etc/x", ""):
        for label, run in {
            "plan_and_preprocess": command("plan_and_preprocess", "-d", "500", *overwriting, name),
            "transfer": command("transfer", "-s", "500", "-t", "17", *overwriting, name),
        }.items():
            yield Row(f"-overwrite_plans_name {name!r}, {label}", make, run, ("-overwrite_plans_name", repr(name)), 1)
    train = ("-m", "mae", "-device", "cpu", "-p")
    benchmark = ("benchmark", "-d", "500", "-o", "{}/o", "-tr")
    model = ("efficiency", "-m", "{}/model", "-i", "{}/raw/Dataset500_Source/imagesTr", "-device", "cpu")
    flags: list[tuple[str, Any, tuple[str, ...]]] = [
        ("-p", command("plan_and_preprocess", "-d", "500", "-p", "../../victim/x"), ("-p", "'../../victim/x'")),
        ("-p dataset", command("plan_and_preprocess", "-d", "500", "-p", "dataset"), ("-p", "'dataset'")),
        ("-p, pretrain", command("pretrain", "-d", "500", *train, "../x"), ("-p", "'../x'")),
        ("-p, benchmark", command(*benchmark, "nnUNetTrainer", "-p", "../x"), ("-p", "'../x'")),
        ("-c", command("plan_and_preprocess", "-d", "500", "-p", "nnsslPlans_tiny", "-c", "../x"), ("../x", "-c")),
        ("-c, pretrain", command("pretrain", "-d", "500", *train, "nnsslPlans_tiny", "-c", "../x"), ("-c", "'../x'")),
        ("-c, benchmark", command(*benchmark, "nnUNetTrainer", "-c", "../x"), ("-c", "'../x'")),
        ("-f, pretrain", command("pretrain", "-d", "500", *train, "nnsslPlans_tiny", "-f", "../x"), ("-f", "'../x'")),
        ("-f, huge", command("pretrain", "-d", "500", *train, "nnsslPlans_tiny", "-f", "9" * 5000), ("-f", "999")),
        ("-f, efficiency", command(*model, "-f", "../x"), ("-f", "'../x'")),
        ("-chk, efficiency", command(*model, "-chk", "../x"), ("-chk", "'../x'")),
        ("-tr, plans", command(*benchmark, "a=nnUNetTrainer,../x"), ("-tr", "'../x'")),
        ("-tr, dataset", command(*benchmark, "a=nnUNetTrainer,dataset"), ("-tr", "dataset.json")),
        ("-tr, name", command(*benchmark, "../x=nnUNetTrainer"), ("-tr", "../x")),
        ("-tr, long name", command(*benchmark, "x" * 300 + "=nnUNetTrainer"), ("-tr", "at most 100")),
        ("-tr, trainer", command(*benchmark, "a=../x"), ("-tr", "'../x'")),
        ("-tr, collected", command(*benchmark, "a=os.system", "--collect"), ("-tr", "'os.system'")),
        ("-i, views", command("visualize", "views", "-m", _RUN, "-o", "{}/o.png", "-i", "../../x/case"),
         ("-i", "'..'")),
    ]  # fmt: skip

    def with_model(folder: Path) -> None:
        make(folder)
        write(folder / "model" / "plans.json", tiny_plans())
        write(folder / "model" / "dataset.json", LABELLED)

    for label, run, expected in flags:
        yield Row(f"flag {label}", with_model, run, expected, 1)
    for name in ("../victim", "Dataset500_../../x", "Dataset5_X", "{}/victim", ".", "9" * 5000):
        for label, run in {
            "plan_and_preprocess": command("plan_and_preprocess", "-d", name),
            "pretrain": command("pretrain", "-d", name, "-m", "mae", "-device", "cpu"),
            "transfer -s": command("transfer", "-s", name, "-t", "17"),
            "transfer -t": command("transfer", "-s", "500", "-t", name),
            "annotated_labels": command("annotated_labels", "check", "-d", name, "--write"),
            "benchmark": command("benchmark", "-d", name, "-tr", "nnUNetTrainer", "-o", "{}/o", "--dry_run"),
        }.items():
            expected = ("run", name) if label == "transfer -s" and name in _PATHS else ("dataset",)
            yield Row(f"dataset {name[:18]!r}, {label}", make, run, expected, 1)


def _plans_of_a_training() -> Iterator[Row]:
    """nnU-Net hands plans to a trainer, which makes folders of these names."""
    for path, name in (
        ("plans_name", "../../victim"),
        ("dataset_name", "../victim"),
        ("configurations.3d_fullres.data_identifier", "../../victim"),
        ("configurations.3d_fullres.previous_stage", "../../victim"),
    ):
        plans = changed(tiny_plans(), {path: name})
        run = function(lambda _, p=plans: refuse_bad_files(p, "3d_fullres", LABELLED))  # type: ignore[misc]
        yield Row(f"training, {path}", victim, run, (path.split(".")[-1], repr(name)), 1)
    run = function(lambda _: refuse_bad_files(tiny_plans(), "../../victim", LABELLED))
    yield Row("training, configuration", victim, run, ("'../../victim'", "3d_fullres"), 1)


def _record_rows() -> Iterator[Row]:
    """The benchmark's own record, from which it writes splits and folders."""
    good = {"dataset": "Dataset500_Source", "configuration": "3d_fullres", "choice": None, "test": ["a"],
            "training": ["b"], "folds": [{"fold": 0, "cases": 1, "seed": 0, "train": ["b"]}],
            "methods": {"m": {"trainer": "T", "plans": "P"}}}  # fmt: skip
    for path, value, key in (
        ("test", ["../../victim"], "test[0]"),
        ("training", ["/etc"], "training[0]"),
        ("folds", [{"fold": "../0", "cases": 1, "seed": 0, "train": []}], "folds[0].fold"),
        ("folds", [{"fold": 0, "cases": 1, "seed": 0, "train": ["../x"]}], "folds[0].train[0]"),
        ("dataset", "../victim", "dataset"),
        ("configuration", "../victim", "configuration"),
        ("methods.m.trainer", "../x", "methods.m.trainer"),
        ("methods", [], "methods"),
    ):
        content = changed(good, {path: value})

        def make(folder: Path, content: Any = content) -> None:
            victim(folder)
            raw(folder, LABELLED)
            write(folder / "pre/Dataset500_Source/nnUNetPlans.json", tiny_plans("nnUNetPlans"))
            write(folder / "pre/Dataset500_Source/dataset.json", LABELLED)
            write(folder / "o/splits.json", content)

        yield Row(f"splits.json of a benchmark, {key}", make, BENCHMARK, ("splits.json", key), 1)


ROWS = [*_case_rows(), *_listed_rows(), *_flag_rows(), *_plans_of_a_training(), *_record_rows()]
