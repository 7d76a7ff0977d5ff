"""Photos, landmarks and banks of faces -> batches."""

from nl3dmm.data.detection import detect_landmarks

__all__ = ["detect_landmarks"]
