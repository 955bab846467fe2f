"""Distillation: losses, the teacher's targets and their cache, and the Lightning modules that train a student."""
