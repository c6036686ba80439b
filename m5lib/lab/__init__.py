"""Runs, recording, studies, claims, sweeps, the notebook runner, doctor."""
