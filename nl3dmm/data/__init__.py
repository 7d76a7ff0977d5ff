"""Photos, landmarks and banks of faces -> batches."""
