"""What there is to say of a pretraining: from its checkpoint and the files beside it, without names of cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nnssl.checkpoints.exported import CONFIG
from nnssl.checkpoints.origin import ORIGIN
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.checkpoints.runs import Run
from nnssl.core import VERSION
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import BenchmarkFile
from nnssl.features.model import PretrainedModel
from nnssl.interchange.adaptation_plan import architecture_of
from nnssl.methods.registry import IMPORTED, get_method
from nnssl.networks.build import resolve_configuration

NNUNET = ("Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., & Maier-Hein, K. H. (2021). nnU-Net: a "
          "self-configuring method for deep learning-based biomedical image segmentation. Nature Methods, 18(2), "
          "203-211.")  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """Results of `nnssl_benchmark`.

    Args:
        dataset: name.
        test_cases: number of them.
        methods: name: trainer, plans and start, in one line each.
        tables: content of its `results.md`.
    """

    dataset: str
    test_cases: int
    methods: dict[str, str]
    tables: str


@dataclass(frozen=True)
class Facts:
    """Of a pretraining.

    Args:
        method: its name.
        learns_from: what the method learns from, as the end of a sentence.
        citations: of method and weights, in APA style.
        plans_name, dataset_name, configuration: of the plans.
        architecture: full name of the network's class.
        arch_kwargs: its arguments.
        levels: "encoder" or "decoder".
        parameters, pretrained: number of values of the network, and of those that the pretraining trained.
        strides: of each level, (z, y, x).
        channels: of the image, by name.
        schemes: how each channel is normalised.
        windows: (low, high) in HU of each CT channel, None for others.
        spacing: mm, (z, y, x).
        patch_size: of the crops of the pretraining, (Z, Y, X) voxels.
        orientation: of most volumes.
        training: numbers of volumes, steps and epochs, and options, as far as they are known.
        summary: content of the run's `summary.json`, empty where there is none.
        probe: data of `-probe`: numbers of cases, names of labels.
        licence: identifier; None where nobody gave one.
        origin: of the weights, see `nnssl.checkpoints.origin.origin_of`.
        benchmark: results.
        picture: name of the picture of the curves.
    """

    method: str
    learns_from: str
    citations: list[str]
    plans_name: str
    dataset_name: str
    configuration: str
    architecture: str
    arch_kwargs: dict[str, Any]
    levels: str
    parameters: int
    pretrained: int
    strides: list[list[int]]
    channels: list[str]
    schemes: list[str]
    windows: list[list[float] | None]
    spacing: list[float]
    patch_size: list[int]
    orientation: str | None
    training: dict[str, Any]
    summary: dict[str, Any]
    probe: dict[str, Any] | None
    licence: str | None
    origin: dict[str, Any] | None
    benchmark: Benchmark | None = None
    picture: str | None = field(default=None, compare=False)

    @property
    def stock_plans(self) -> str:
        """Name of the exported plans, which no stock plans of another dataset have."""
        return f"{self.plans_name}From_{self.method}"

    def config(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Content of `config.json`.

        Args:
            run: entries of the checkpoint but its tensors, from which this package makes it again.
        """
        return {
            "library": f"nnssl {VERSION}",
            "method": self.method,
            "architecture": self.architecture,
            "kwargs": self.arch_kwargs,
            "levels": self.levels,
            "parameters": self.parameters,
            "spacing": self.spacing,
            "normalization": self.schemes,
            "window": self.windows,
            "channels": self.channels,
            "patch_size": self.patch_size,
            "license": self.licence,
            "citations": self.citations,
            "training": self.training,
            "summary": self.summary,
            "probe": self.probe,
            "run": dict(run),
        }


def facts_of(run: Run, model: PretrainedModel, kept: Mapping[str, Any], licence: str | None) -> Facts:
    """Collect them.

    Args:
        run: opened.
        model: its backbone.
        kept: entries of its checkpoint that are exported.
        licence: of the exported weights.
    """
    plans, method = kept["plans"], get_method(kept["method"])
    resolved = resolve_configuration(plans, kept["configuration"])
    architecture, origin = architecture_of(resolved), kept.get(ORIGIN)
    home = run.checkpoint.parent
    config, summary = (_beside(home, name) for name in (CONFIG, "summary.json"))
    fresh = tuple((run.content.get(IMPORTED) or {}).get("fresh", ()))  # of an import: nobody trained them
    used = [tensor for name, tensor in model.backbone.used_tensors().items() if not name.startswith(fresh)]
    return Facts(
        method=kept["method"],
        learns_from=method.learns_from,
        citations=[text for text in (method.paper, (origin or {}).get("citation")) if text],
        plans_name=plans["plans_name"],
        dataset_name=plans["dataset_name"],
        configuration=kept["configuration"],
        architecture=architecture["network_class_name"],
        arch_kwargs=architecture["arch_kwargs"],
        levels=model.levels,
        parameters=sum(p.numel() for p in model.backbone.parameters()),
        pretrained=sum(p.numel() for p in used if isinstance(p, nn.Parameter)),
        strides=[list(stride) for stride in model.strides],
        channels=[str(name) for name in kept["dataset_json"]["channel_names"].values()],
        schemes=list(resolved["normalization_schemes"]),
        windows=_windows(plans, resolved),
        spacing=[float(mm) for mm in resolved["spacing"]],
        patch_size=list(model.patch_size),
        orientation=model.orientation,
        training=config.get("training") or _training(run.content, config),
        summary=summary or config.get("summary") or {},
        probe=_probe(config.get("probe")),
        licence=licence,
        origin=origin,
    )


def benchmark_of(folder: Path, checkpoint: Path) -> Benchmark:
    """Results of a benchmark in which the pretraining took part.

    Args:
        folder: output of `nnssl_benchmark`.
        checkpoint: of the pretraining.

    Raises:
        UserError: there are no results, or none of its trainings started from the pretraining.
    """
    record = read_json(folder / "splits.json", BenchmarkFile, "give -benchmark the output folder of nnssl_benchmark")
    tables = folder / "results" / "results.md"
    if not tables.is_file():
        raise UserError(f"{tables} is missing; nnssl_benchmark ... -o {folder} --collect makes it")
    starts = {name: method.get("checkpoint") for name, method in record["methods"].items()}
    named = [start for start in starts.values() if start and start != RANDOM]
    if named and not any(_is_of(start, checkpoint) for start in named):
        raise UserError(f"no training of {folder} started from {checkpoint}; give -benchmark a folder in which one did")
    methods = {
        name: f"{method['trainer']} on {method['plans']}" + _started(starts[name], checkpoint)
        for name, method in record["methods"].items()
    }
    return Benchmark(record["dataset"], len(record["test"]), methods, tables.read_text(encoding="utf-8"))


def citations_of(facts: Facts) -> list[dict[str, Any]]:
    """Of method and software, as checkpoints of the exchange format list them."""
    method = {"type": "Pretraining", "name": facts.method, "apa_citations": facts.citations}
    return [*([method] if facts.citations else []), {"type": "Framework", "name": "nnU-Net", "apa_citations": [NNUNET]}]


def _is_of(start: str, checkpoint: Path) -> bool:
    path = Path(start.split("{seed}")[0]).resolve()
    return checkpoint.resolve() == path or path in checkpoint.resolve().parents


def _started(start: str | None, checkpoint: Path) -> str:
    if not start:
        return ""
    if start == RANDOM:
        return ", from random weights"
    return ", from these weights" if _is_of(start, checkpoint) else ", from other weights"


def _beside(folder: Path, name: str) -> dict[str, Any]:
    content = read_json(folder / name) if (folder / name).is_file() else {}
    return content if isinstance(content, dict) else {}


def _windows(plans: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[list[float] | None]:
    properties = plans["foreground_intensity_properties_per_channel"]
    return [
        [float(properties[str(i)][key]) for key in ("percentile_00_5", "percentile_99_5")] if "CT" in scheme else None
        for i, scheme in enumerate(resolved["normalization_schemes"])
    ]


def _training(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers only: names of cases stay in the run."""
    options = dict(content["config"])
    return {
        "volumes": len(content.get("train_cases", [])) or config.get("training_cases"),
        "held_out": len(content.get("val_cases", [])) if "val_cases" in content else None,
        "datasets": len(config.get("datasets", [])) or None,
        "epochs": content.get("epoch"),
        "steps": content.get("step"),
        "options": options,
        "versions": content.get("versions") or config.get("versions") or {},
    }


def _probe(probe: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not probe:
        return None
    if "train_cases" not in probe:  # of an exported folder
        return dict(probe)
    return {
        "dataset": probe["dataset"],
        "train": len(probe["train_cases"]),
        "held_out": len(probe["held_out_cases"]),
        "labels": list(probe["labels"]),
    }
