"""Where the time of a prediction goes, with the network in PyTorch (nnU-Net's own) and in ONNX Runtime, in turn.

    python benchmarks/prediction.py -i FOLDER -m MODEL_FOLDER -f 0 -threads 2 [--disable_tta] [-only torch|onnx]

MODEL_FOLDER is that of a finished training, FOLDER holds images named as `nnUNetv2_predict` wants them. Both run in
this process, without workers: nnU-Net's `predict_from_files_sequential` each time. The last lines are the number of
voxels whose labels differ and the peak memory, which belongs to one of the two only with `-only`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data as stock
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnssl.deployment import labels
from nnssl.deployment.export import export_onnx
from nnssl.deployment.predict import SessionNetwork, predict_onnx

Seconds = dict[str, list[float]]


@contextlib.contextmanager
def timed(seconds: Seconds, part: str) -> Iterator[None]:
    """Add CPU seconds and seconds on the clock to a part."""
    cpu, clock = time.process_time(), time.perf_counter()
    yield
    spent = seconds.setdefault(part, [0.0, 0.0])
    spent[0] += time.process_time() - cpu
    spent[1] += time.perf_counter() - clock


def watched(seconds: Seconds, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, timed."""

    def call(*arguments: Any, **options: Any) -> Any:
        with timed(seconds, part):
            return function(*arguments, **options)

    return call


@contextlib.contextmanager
def parts(seconds: Seconds, network: type) -> Iterator[None]:
    """Time reading and preprocessing, the network inside the sliding window, the window, resampling and writing."""
    with (
        patch.object(
            DefaultPreprocessor, "run_case", watched_method(seconds, "read, prepare", DefaultPreprocessor.run_case)
        ),
        patch.object(network, "__call__", watched_method(seconds, "network", network.__call__)),
        patch.object(
            nnUNetPredictor,
            "predict_sliding_window_return_logits",
            watched_method(seconds, "window", nnUNetPredictor.predict_sliding_window_return_logits),
        ),
        patch.object(
            stock,
            "export_prediction_from_logits",
            watched(seconds, "resample, write", stock.export_prediction_from_logits),
        ),
        patch.object(labels, "export_labels", watched(seconds, "resample, write", labels.export_labels)),
    ):
        yield


def watched_method(seconds: Seconds, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """As `watched`, for a method."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        with timed(seconds, part):
            return method(self, *arguments, **options)

    return call


class _Network(torch.nn.Module):
    """nnU-Net's network with a type of its own, whose calls can be timed."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return self.inner.load_state_dict(state_dict, strict, assign)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y


def predict_torch(given: argparse.Namespace, output: Path) -> None:
    """As `nnUNetv2_predict_from_modelfolder -device cpu -npp 0 -nps 0` does."""
    predictor = nnUNetPredictor(
        use_mirroring=not given.disable_tta, device=torch.device("cpu"), allow_tqdm=False, verbose=False
    )
    predictor.initialize_from_trained_model_folder(given.m, (given.f,), "checkpoint_final.pth")
    predictor.network = _Network(predictor.network)
    output.mkdir()
    predictor.predict_from_files_sequential(given.i, str(output))


def main() -> None:
    """Print the parts of both, their ratio, the labels that differ and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", required=True, help="folder of images")
    parser.add_argument("-m", required=True, help="model folder")
    parser.add_argument("-f", default="0", help="fold")
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-repeats", type=int, default=1)
    parser.add_argument("--disable_tta", action="store_true")
    parser.add_argument("-only", choices=("torch", "onnx"))
    parser.add_argument("-onnx", type=Path, help="exported model; missing: it is exported first, which takes its time")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.onnx or folder / "model.onnx"
        if given.onnx is None and given.only != "torch":
            export_onnx(given.m, model, given.f)

        def onnx(output: Path) -> None:
            predict_onnx(given.i, output, [model], disable_tta=given.disable_tta, device="cpu",
                         num_processes_preprocessing=0, num_processes_segmentation_export=0, threads=given.threads,
                         disable_progress_bar=True)  # fmt: skip

        runs: dict[str, tuple[Callable[[Path], None], type]] = {
            "torch": (lambda output: predict_torch(given, output), _Network),
            "onnx": (onnx, SessionNetwork),
        }
        for repeat in range(given.repeats):
            for kind in [given.only] if given.only else list(runs):
                predict, network = runs[kind]
                seconds: Seconds = {}
                with parts(seconds, network), timed(seconds, "whole"):
                    predict(folder / f"{kind}{repeat}")
                seconds["window"] = [a - b for a, b in zip(seconds["window"], seconds["network"], strict=True)]
                shown = ", ".join(f"{part} {cpu:.2f} ({clock:.2f})" for part, (cpu, clock) in seconds.items())
                print(f"{kind}: {shown}; CPU s (clock), load {os.getloadavg()[0]:.1f}", flush=True)
        if not given.only:
            print(f"voxels whose labels differ: {differing(folder / 'torch0', folder / 'onnx0')}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def differing(one: Path, other: Path) -> int:
    """Number of voxels whose labels differ between two folders of predictions."""
    return sum(
        int(np.count_nonzero(_labels(file) != _labels(other / file.name))) for file in sorted(one.glob("*.nii.gz"))
    )


def _labels(file: Path) -> np.ndarray:
    labels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(file))
    return labels


if __name__ == "__main__":
    main()
