"""Lightning glue: a run from config to checkpoint."""
