"""Batched transforms in torch: parameters are drawn with numpy in a loader worker and applied on any device."""
