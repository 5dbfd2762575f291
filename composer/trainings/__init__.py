"""Trainings as jobs: a queue in the shared state, a loop that runs them, a process for each."""
