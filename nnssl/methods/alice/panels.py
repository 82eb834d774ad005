"""Pictures of Alice's pairs for `views.png`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnssl.methods.base import Batch
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.methods.shared.hidden_blocks import slice_panel, value_range, visible_voxels
from nnssl.methods.shared.overlapping_crops import boxes_of_crops

_SHOWN = 2  # pairs
_VIEWS = ("query", "key")


def pair_panels(batch: Batch) -> list[list[Panel]]:
    """For up to two pairs, a row for the query and one for the key: the crop with the matched point, what the student
    sees of it, and the view of the target."""
    rows = []
    for i in range(min(_SHOWN, len(batch["crops"]))):
        crops, targets = batch["crops"][i], batch["targets"][i, :, 0].numpy()
        seen = visible_voxels(crops, batch["hidden"][i])[:, 0].numpy()
        similarity = float(batch["similarity"][i])
        known = "" if np.isnan(similarity) else f", similarity {similarity:.2f}"
        point = ((1, crops.shape[-2] // 2, crops.shape[-1] // 2),)
        for k, name in enumerate(_VIEWS):
            title, shown, of = f"pair {i + 1}, {name}", value_range(crops[k, 0].numpy()), (i, k)
            rows.append([
                slice_panel(crops[k, 0].numpy(), title + (known if k else ""), point, shown, of),
                slice_panel(seen[k], f"{title}: visible", values=shown, of=of),
                slice_panel(targets[k], f"{title}: target view", values=shown, of=of),
            ])  # fmt: skip
    return rows


def pair_whereabouts(batch: Batch, patch: Sequence[int]) -> list[Whereabouts]:
    """The query's crop in the sample's volume and the key's in the other one, for up to two pairs."""
    boxes = boxes_of_crops(batch["starts"], patch).numpy()
    return [
        Whereabouts(
            i, boxes[i, k : k + 1], (k,), None if k == 0 else int(batch["others"][i]), name=f"pair {i + 1}, {name}"
        )
        for i in range(min(_SHOWN, len(boxes)))
        for k, name in enumerate(_VIEWS)
    ]
