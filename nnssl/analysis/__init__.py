"""What users look at: embeddings, matches, figures."""
