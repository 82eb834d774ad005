"""A label for each scan: classification and regression, on frozen features or by fine-tuning."""
