"""The model card of exported weights: README.md with the metadata that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnssl.checkpoints.files import FINAL, NNUNET_WEIGHTS
from nnssl.core import VERSION
from nnssl.core.names import markdown
from nnssl.interchange.facts import NNUNET, Benchmark, Facts
from nnssl.interchange.licensing import is_known, terms_of
from nnssl.methods.registry import IMPORTED

_UNITS = {"cuda": "GPU", "cpu": "CPU"}
_HEALTH = {"embedding_std": "deviation of the embeddings", "effective_rank": "their effective rank"}
_OPTIONS = ("batch_size", "optimiser", "learning_rate", "weight_decay", "schedule", "precision", "seed")


def model_card(facts: Facts, limits: Sequence[str], format: str, folder: str) -> str:
    """Text of README.md.

    Args:
        facts: of the pretraining.
        limits: what others must know before they use the files, in sentences.
        format: of the export.
        folder: its name, for the lines to type.
    """
    network = facts.architecture.rpartition(".")[2]
    parts = [
        _metadata(facts, network),
        f"# {network}, pretrained {_by(facts)}\n\n{_introduction(facts, network)}",
        f"## Use\n\n{_use(facts, format, folder)}",
        f"## Data\n\n{_table(_data(facts))}",
        f"## Network\n\n{_table(_network(facts))}",
        f"## Training\n\n{_table(_training(facts))}{_curves(facts)}",
        _results(facts),
        f"## Limits\n\n{_list([*limits, 'For research. Not a medical device: no diagnosis may rest on it.'])}",
        f"## Licence\n\n{_licence(facts)}",
        f"## To cite\n\n{_list([*facts.citations, NNUNET])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: Facts, network: str) -> str:
    """YAML; every text is quoted as JSON, which is YAML too."""
    modalities = list(dict.fromkeys(name.lower() for name in facts.channels))
    way = [] if facts.method == IMPORTED else ["self-supervised-learning", facts.method]
    tags = [*way, "medical-imaging", "3d", "nnU-Net", network, *modalities]
    if facts.licence and "nc" in terms_of(facts.licence):
        tags.append("non-commercial")
    lines = [*_license_lines(facts.licence), "library_name: nnssl", "pipeline_tag: image-feature-extraction", "tags:",
             *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags))]  # fmt: skip
    return "\n".join(["---", *lines, "---"])


def _license_lines(licence: str | None) -> list[str]:
    if licence is None:
        return ["license: unknown"]
    return [f"license: {licence}"] if is_known(licence) else ["license: other", f"license_name: {json.dumps(licence)}"]


def _by(facts: Facts) -> str:
    return "elsewhere" if facts.method == IMPORTED else f"with {facts.method}"


def _introduction(facts: Facts, network: str) -> str:
    channels = ", ".join(markdown(name) for name in facts.channels)
    title = markdown(str((facts.origin or {}).get("title") or "another program"))
    if facts.method == IMPORTED:
        said = f", {'trained from' if (facts.origin or {}).get('derived') else 'with'} the weights of {title}."
    else:
        learnt = f", from {markdown(facts.learns_from)}" if facts.learns_from else ""
        begun = f" The pretraining began with {title}." if (facts.origin or {}).get("derived") else ""
        said = f", pretrained without labels{learnt}.{begun}"
    return (f"A 3D {network} for {channels} images{said} Written by nnssl {VERSION}, which pretrains and fine-tunes "
            f"nnU-Net's networks in nnU-Net's folders.")  # fmt: skip


def _use(facts: Facts, format: str, folder: str) -> str:
    name = folder if folder.replace("_", "a").replace("-", "a").replace(".", "a").isalnum() else "FOLDER"
    if format == "nnunet":
        plans, source = facts.stock_plans, facts.dataset_name
        lines = [
            f"mkdir -p $nnUNet_preprocessed/{source} && cp {name}/{plans}.json $nnUNet_preprocessed/{source}",
            f"nnUNetv2_move_plans_between_datasets -s {source} -t DATASET -sp {plans} -tp {plans}",
            f"nnUNetv2_preprocess -d DATASET -plans_name {plans} -c {facts.configuration}",
            f"nnUNetv2_train DATASET {facts.configuration} 0 -p {plans} -pretrained_weights {name}/{NNUNET_WEIGHTS}",
        ]
        return f"With stock nnU-Net; DATASET is the number of your labelled dataset:\n\n{_code(lines)}"
    python = [
        "import nnssl", f'model = nnssl.load_pretrained("{name}")',
        'levels = model(model.prepare("imagesTr/case_1").values[None])    # feature maps, finest first',
    ]  # fmt: skip
    shell = [f"nnssl_transfer -s ./{name} -t DATASET    # prints the line that trains"]
    text = (f"{_code(python, 'python')}\n\nFine-tuning with nnU-Net, on your labelled dataset in the spacing and "
            f"intensities of these weights:\n\n{_code(shell)}")  # fmt: skip
    if format == "nnssl":
        stock = [f"nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc {name}/{FINAL} -am like_pretrained",
                 "nnUNetv2_train_pretrained DATASET 3d_fullres 0 -p PLANS_THAT_IT_NAMES"]  # fmt: skip
        text += f"\n\nWithout nnssl, by an nnU-Net that has these commands:\n\n{_code(stock)}"
    return text


def _data(facts: Facts) -> list[tuple[str, str]]:
    training = facts.training
    held = f", {training['held_out']} more held out" if training.get("held_out") else ""
    several = f" of {training['datasets']} datasets" if (training.get("datasets") or 1) > 1 else ""
    seen = [f"{training['volumes']:,}{several}{held}"] if training.get("volumes") else []
    channels = [
        f"{markdown(name)}: {_intensities(scheme, window)}"
        for name, scheme, window in zip(facts.channels, facts.schemes, facts.windows, strict=True)
    ]
    return [
        *(("volumes", text) for text in seen),
        ("channels and intensities", "; ".join(channels)),
        ("spacing (z, y, x)", f"{_times(facts.spacing)} mm"),
        *([("orientation of most volumes", facts.orientation)] if facts.orientation else []),
    ]


def _intensities(scheme: str, window: Sequence[float] | None) -> str:
    if window is not None:
        return f"clipped to {window[0]:g} to {window[1]:g} HU, then standardised by the plans' mean and deviation"
    return {"ZScoreNormalization": "z-score of each image"}.get(scheme, markdown(scheme))


def _network(facts: Facts) -> list[tuple[str, str]]:
    part = "encoder" if facts.levels == "encoder" else "encoder and decoder"
    return [
        ("class", f"`{facts.architecture}`"),
        ("parameters", f"{facts.parameters:,}, of which {facts.pretrained:,} are pretrained ({part})"),
        ("strides of the levels (z, y, x)", "; ".join(_times(stride) for stride in facts.strides)),
    ]


def _training(facts: Facts) -> list[tuple[str, str]]:
    training, summary = facts.training, facts.summary
    options = {key: training["options"][key] for key in _OPTIONS if training["options"].get(key) is not None}
    rows = [("crops", f"{_times(facts.patch_size)} voxels")]
    if training.get("steps"):
        rows.append(("length", f"{training['steps']:,} steps in {training['epochs']:,} epochs"))
        rows.append(("options", ", ".join(f"{key} {value}" for key, value in options.items())))
    if summary:
        loss = f"{summary['loss']:.4g}"
        held = f", {summary['val_loss']:.4g} on held-out volumes" if summary.get("val_loss") is not None else ""
        health = [f"{said} {summary[key]:.3g}" for key, said in _HEALTH.items() if summary.get(key) is not None]
        rows += [("loss at the end", loss + held), *([("health at the end", ", ".join(health))] if health else [])]
        rows.append(("cost", _cost(summary)))
    return rows


def _cost(summary: Mapping[str, Any]) -> str:
    unit = _UNITS.get(summary["device"], summary["device"])
    energy = summary.get("energy_kwh")
    parts = [
        f"{summary['device_hours']:.3g} {unit}-hours",
        f"{summary['processes']} x {summary['hardware']}" if summary.get("hardware") else "",
        f"{summary['peak_memory_gib']:.3g} GiB of memory",
        "energy not measured" if energy is None else f"{energy:.3g} kWh",
    ]
    return ", ".join(filter(None, parts))


def _curves(facts: Facts) -> str:
    return f"\n\n![Curves of the training]({facts.picture})" if facts.picture else ""


def _results(facts: Facts) -> str:
    best = facts.summary.get("best_probe")
    parts = [_probe(facts.probe, best) if facts.probe and best else "", _benchmark(facts.benchmark)]
    return "\n\n".join(["## Results", *filter(None, parts)]) if any(parts) else ""


def _probe(probe: Mapping[str, Any], best: Mapping[str, Mapping[str, float]]) -> str:
    labels = ", ".join(markdown(name) for name in probe["labels"])
    rows = [(f"{kind} head", f"{found['dice']:.4f} (epoch {found['epoch']})") for kind, found in best.items()]
    return (f"Probe while it trained: heads on the frozen features learnt from {probe['train']} labelled cases of "
            f"another dataset. Best mean Dice on {probe['held_out']} others, chosen on these same cases, over "
            f"{labels}:\n\n{_table(rows)}")  # fmt: skip


def _benchmark(benchmark: Benchmark | None) -> str:
    if benchmark is None:
        return ""
    rows = [(markdown(name), markdown(said)) for name, said in benchmark.methods.items()]
    return (f"Trainings on {markdown(benchmark.dataset)} with few and with many labels, by `nnssl_benchmark`, on one "
            f"test set of {benchmark.test_cases} cases that no training saw:\n\n{_table(rows)}\n\n"
            f"{benchmark.tables.strip()}")  # fmt: skip


def _licence(facts: Facts) -> str:
    origin = facts.origin or {}
    if facts.licence is None:
        return "None was given: ask the authors before you use these weights."
    named = f"{markdown(facts.licence)}."
    if origin.get("title") and origin.get("licence"):
        source = f"{markdown(str(origin['title']))} ({markdown(str(origin['licence']))})"
        named += f" The weights {'derive from' if origin.get('derived') else 'are those of'} {source}."
    said = {"nc": "No commercial use.", "nd": "Weights that are trained from these must not be passed on.",
            "sa": "Weights that are trained from these keep this licence."}  # fmt: skip
    terms = terms_of(facts.licence)
    return " ".join([named, *(text for term, text in said.items() if term in terms)])


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item[:1].upper()}{item[1:]}{'' if item.endswith('.') else '.'}" for item in items)


def _code(lines: Sequence[str], language: str = "bash") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _times(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
