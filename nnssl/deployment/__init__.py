"""Trained model folders outside PyTorch: ONNX files, prediction with them, and what a prediction costs."""
