"""Pictures and explorers: arrays in, figures out. Nothing here knows a model."""
