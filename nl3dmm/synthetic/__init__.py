"""The synthetic world: endless faces with exact truth."""
