"""Label maps from the logits of a whole image: those that nnU-Net writes, in less time and memory.

nnU-Net resamples the logits of all classes to the size of the image, in float64, and then takes the largest of each
voxel. Here one class is resampled after another, by nnU-Net's function, and only the largest logit so far is kept.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray


def export_labels(
    logits: Any,
    properties: dict[str, Any],
    configuration: Any,
    plans: Any,
    dataset_json: Any,
    output_file: str,
    save_probabilities: bool = False,
    **options: Any,
) -> None:
    """In place of nnU-Net's `export_prediction_from_logits`, with the same arguments and the same file.

    Whatever needs all classes at once is left to that function: probabilities, regions, logits with NaN, and other
    functions of resampling.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    manager = plans.get_label_manager(dataset_json)
    resampling = configuration.resampling_fn_probabilities
    if (
        save_probabilities
        or manager.has_regions
        or not _is_usual(resampling, configuration)
        or bool(torch.isnan(torch.as_tensor(logits)).any())
    ):
        export_prediction_from_logits(logits, properties, configuration, plans, dataset_json, output_file,
                                      save_probabilities, **options)  # fmt: skip
        return
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    threads = 1 if multiprocessing.parent_process() is not None else torch.get_num_threads()
    found = largest_class(np.asarray(logits), shape, configuration.spacing, spacing, resampling, threads)
    whole = np.zeros(
        properties["shape_before_cropping"], np.uint8 if len(manager.foreground_labels) < 255 else np.uint16
    )
    whole = insert_crop_into_image(whole, found, properties["bbox_used_for_cropping"])
    writer = plans.image_reader_writer_class()
    writer.write_seg(whole.transpose(plans.transpose_backward), output_file + dataset_json["file_ending"], properties)


def largest_class(
    logits: NDArray[Any],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Callable[..., Any],
    threads: int = 1,
) -> NDArray[np.uint16]:
    """The class of the largest resampled logit at every voxel; the first of equal ones, as numpy's argmax.

    Args:
        logits: (C, Z, Y, X) without NaN.
        shape: (3,) of the result.
        spacing: (3,) mm of the logits.
        new_spacing: (3,) mm of the result.
        resampling: a partial of nnU-Net's `resample_data_or_seg_to_shape`.
        threads: that resample classes at the same time.
    """
    chosen, function = _only_needed(logits, shape, spacing, new_spacing, resampling)
    classes = (lambda part=part: function(part[None]) for part in chosen)  # type: ignore[misc]
    resampled = _in_order(classes, threads)
    best = next(resampled)[0].copy()
    found = np.zeros(best.shape, dtype=np.uint16)
    for number, (values,) in enumerate(resampled, start=1):
        larger = values > best
        np.copyto(found, number, where=larger)
        np.copyto(best, values, where=larger)
    return found


@contextmanager
def exporting_labels() -> Iterator[None]:
    """nnU-Net's predictor writes with `export_labels` inside the context."""
    from nnunetv2.inference import predict_from_raw_data

    with patch.object(predict_from_raw_data, "export_prediction_from_logits", export_labels):
        yield


def _is_usual(resampling: Any, configuration: Any) -> bool:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return resampling.func is resample_data_or_seg_to_shape and len(configuration.spacing) == 3


def _only_needed(
    logits: NDArray[Any],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Any,
) -> tuple[NDArray[Any], Callable[[NDArray[Any]], Any]]:
    """The logits that the result depends on, and what resamples a class (1, Z, Y, X) of them.

    Slices that nnU-Net resamples one by one, and picks the nearest of, are picked first.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import (
        ANISO_THRESHOLD,
        determine_do_sep_z_and_axis,
        resample_data_or_seg,
    )
    from scipy.ndimage import map_coordinates

    given = resampling.keywords
    apart, axis = determine_do_sep_z_and_axis(
        given.get("force_separate_z", False), spacing, new_spacing,
        given.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD),
    )  # fmt: skip
    if not apart or axis is None or given.get("order_z", 0) != 0 or given.get("is_seg", False):
        return logits, lambda part: resampling(part, shape, spacing, new_spacing)
    before, after = logits.shape[axis + 1], int(shape[axis])
    places = before / after * (np.arange(after) + 0.5) - 0.5
    nearest = map_coordinates(np.arange(before, dtype=float), [places], order=0, mode="nearest").astype(int)
    order = given.get("order", 3)
    return logits.take(nearest, axis + 1), lambda part: resample_data_or_seg(
        part, shape, is_seg=False, axis=axis, order=order, do_separate_z=True
    )


def _in_order(calls: Iterable[Callable[[], Any]], threads: int) -> Iterator[Any]:
    """The results of calls in their order, with one result more than threads at most waiting."""
    if threads == 1:
        yield from (call() for call in calls)
        return
    left = iter(calls)
    with ThreadPoolExecutor(threads) as pool:
        running: list[Future[Any]] = [pool.submit(call) for call in islice(left, threads + 1)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(call) for call in islice(left, 1)]
